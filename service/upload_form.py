"""The form that an adapter is uploaded as, taken apart while it arrives: texts into memory, files to disk.

A part that is unknown, comes twice, is too large or cannot be what its name says is refused where it begins, not at
the end of a gigabyte.
"""

from pathlib import Path
from typing import BinaryIO

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from adapters.extras import MAX_EXTRAS, is_extra
from adapters.names import check_part
from adapters.parcel import START, WEIGHTS_FILE, check_size, check_start
from service.errors import InvalidRequestError, shorten
from service.publishing import own_name
from service.upload_fields import ARCHIVE, FILES, PLOT, UploadFields

ARCHIVE_FILE = "archive.part"
MAX_TEXT_BYTES = 1 << 20
"""All texts of a form together; a Jinja template is the longest of them."""
MAX_TEXTS = 4096


class UploadForm:
    """One body of multipart/form-data; `feed` it, then `finish`.

    Args:
        content_type: The request's own header.
        folder: Where files go, under the names that an adapter's files have; it is there and empty.
        most: Bytes that a file may have.
        tenant: Whose key it came with; a wrong name is refused where it stands.

    Raises:
        InvalidRequestError: It is no such body.
    """

    def __init__(self, content_type: str, folder: Path, most: int, tenant: str | None) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not 0 < len(boundary) <= 200:
            raise InvalidRequestError("The body has to be multipart/form-data: send a form, as `curl -F` does.")
        self._folder = folder
        self._most = most
        self._tenant = tenant
        self._texts: dict[str, list[str]] = {}
        self._text_bytes = 0
        self._names: set[str] = set()
        self._headers: dict[bytes, bytes] = {}
        self._field = self._value = b""
        self._part: _FilePart | _TextPart | None = None
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._headers.clear,
                "on_header_begin": self._begin_header,
                "on_header_field": self._take_header_field,
                "on_header_value": self._take_header_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._begin_part,
                "on_part_data": self._take_data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body; writes to disk."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise InvalidRequestError("The body is not the multipart/form-data that its header announces.") from error

    def finish(self) -> UploadFields:
        """The texts, checked; the files lie in the folder.

        Raises:
            InvalidRequestError: The body ends too early, or has neither an archive nor an adapter's files.
            RequestValidationError: Fields are missing or wrong.
        """
        if not self._ended:
            raise InvalidRequestError("The body ends in the middle of a part: send it whole.")
        self._check_files()
        try:
            return UploadFields.model_validate(self._texts)
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from error

    def close(self) -> None:
        """Close the file that is being written, if the body broke off in it."""
        if isinstance(self._part, _FilePart):
            self._part.close()

    def _check_files(self) -> None:
        if ARCHIVE in self._names:
            if len(self._names) > 1:
                other = min(self._names - {ARCHIVE})
                raise InvalidRequestError("Send an archive or the files one by one, not both.", param=other)
            return
        for field in ("config", "weights"):
            if field not in self._names:
                raise RequestValidationError([{"type": "missing", "loc": ("body", field), "msg": ""}])

    # Callbacks of the parser

    def _begin_header(self) -> None:
        self._field = self._value = b""

    def _take_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _take_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._field.lower()] = self._value

    def _begin_part(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        field = options.get(b"name", b"").decode("utf-8", "replace")
        if kind != b"form-data" or not field:
            raise InvalidRequestError("Every part of the form needs a name.")
        is_file = field in FILES or field in (ARCHIVE, PLOT)
        if field not in UploadFields.model_fields and not is_file:
            raise RequestValidationError([{"type": "extra_forbidden", "loc": ("body", field), "msg": ""}])
        self._part = self._file(field, options.get(b"filename", b"")) if is_file else _TextPart(field)

    def _file(self, field: str, filename: bytes) -> "_FilePart":
        if field == PLOT:
            name = filename.decode("utf-8", "replace")
            if not is_extra(name) or name in FILES.values():
                raise InvalidRequestError(
                    f"'{shorten(name)}' is no name of a plot: send it with a plain name that ends in .png.", param=PLOT
                )
            if len(self._names) > MAX_EXTRAS + len(FILES):
                raise InvalidRequestError(f"At most {MAX_EXTRAS} plots may be sent: leave some out.", param=PLOT)
        else:
            name = FILES.get(field, ARCHIVE_FILE)
        taken = field if field != PLOT else name
        if taken in self._names:
            raise InvalidRequestError(f"'{shorten(taken)}' is sent more than once: send it once.", param=field)
        self._names.add(taken)
        return _FilePart(self._folder / name, self._most)

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if isinstance(self._part, _TextPart):
            self._text_bytes += end - start
            if self._text_bytes > MAX_TEXT_BYTES:
                message = f"The texts of the form have more than {MAX_TEXT_BYTES} bytes: shorten them."
                raise InvalidRequestError(message, param=self._part.field)
        assert self._part is not None, "data comes after the headers of its part"
        self._part.take(data[start:end])

    def _end_part(self) -> None:
        part, self._part = self._part, None
        assert part is not None, "what ends has begun"
        if isinstance(part, _FilePart):
            part.close()
            return
        text = part.text()
        if part.field == "name":
            own_name(text, self._tenant)
        elif part.field == "alias":
            check_part(text, "alias")
        self._texts.setdefault(part.field, []).append(text)
        if sum(map(len, self._texts.values())) > MAX_TEXTS:
            raise InvalidRequestError(f"The form has more than {MAX_TEXTS} fields.", param=part.field)

    def _end(self) -> None:
        self._ended = True


class _TextPart:
    def __init__(self, field: str) -> None:
        self.field = field
        self._data = bytearray()

    def take(self, data: bytes) -> None:
        self._data += data

    def text(self) -> str:
        try:
            return self._data.decode()
        except UnicodeDecodeError:
            raise InvalidRequestError(f"'{self.field}' is not UTF-8.", param=self.field) from None


class _FilePart:
    """A file on its way to disk."""

    def __init__(self, path: Path, most: int) -> None:
        self._name = path.name
        self._most = most
        self._start = b""
        self._size = 0
        self._file: BinaryIO = path.open("xb")

    def take(self, data: bytes) -> None:
        self._size += len(data)
        if self._name != ARCHIVE_FILE:
            check_size(self._name, self._size, self._most)
        if self._name == WEIGHTS_FILE and len(self._start) < START:
            self._start += data[: START - len(self._start)]
            if len(self._start) == START:
                check_start(self._start)
        self._file.write(data)

    def close(self) -> None:
        self._file.close()
