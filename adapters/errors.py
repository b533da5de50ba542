"""Errors of the room.

AdapterError
├── AdapterNameError         a name that is not `tenant/name[@digest|:alias]`
├── AdapterNotFoundError     no such name, version or alias
├── AdapterExistsError       the name or version is taken, or still in use
├── AdapterFormatError       a file that is missing, broken, pickled or not finite
├── AdapterUnsupportedError  a kind of adapter that is not served: DoRA, biases, embeddings …
├── AdapterMismatchError     another base, other keys, other shapes
├── TemplateError            a prompt that cannot be rendered
├── StateError               the database that names and tenants are kept in cannot be used
└── BaseModelError           a base model that cannot be used
"""


class AdapterError(Exception):
    """Something about an adapter is wrong; the message says what to do about it.

    ``key`` names the field, tensor or file at fault, where there is one.
    """

    def __init__(self, message: str, *, key: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.key = key

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.key)


class AdapterNameError(AdapterError):
    """A name that does not have the form of one."""


class AdapterNotFoundError(AdapterError):
    """No adapter, version or alias of that name."""


class AdapterExistsError(AdapterError):
    """The name is taken, or the thing to delete is still in use."""


class AdapterFormatError(AdapterError):
    """A file of the adapter is missing, broken, pickled or holds values that are not finite."""


class AdapterUnsupportedError(AdapterError):
    """The adapter asks for something that serving does not do."""


class AdapterMismatchError(AdapterError):
    """The adapter does not belong to this base: another fingerprint, other keys or shapes."""


class TemplateError(AdapterError):
    """A prompt template that cannot be compiled, or an input that it cannot render."""


class StateError(AdapterError):
    """The database cannot be reached, read or brought up to date."""


class BaseModelError(AdapterError):
    """A base model that is missing, pickled or of an architecture that is not served."""


def _rebuild(kind: type[AdapterError], message: str, key: str | None) -> AdapterError:
    return kind(message, key=key)


def named(items: list[str], *, most: int = 5) -> str:
    """Join the first few items and count the rest: ``a, b, c (+7 more)``."""
    rest = f" (+{len(items) - most} more)" if len(items) > most else ""
    return ", ".join(items[:most]) + rest
