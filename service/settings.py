"""What the service is told from outside: one frozen object, read once, passed down.

Every field is a variable `TENORA_<FIELD>` in the environment; the flags of `tenora serve` win over it. No other
module reads the environment.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableError

from adapters.errors import AdapterNameError
from adapters.names import check_part

PREFIX = "TENORA_"
EVERY_TENANT = "*"
LOOPBACK = frozenset({"127.0.0.1", "localhost"})

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
PositiveInt = Annotated[int, Field(ge=1)]
AnySettings = TypeVar("AnySettings", bound=BaseSettings)
PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def traces_wanted() -> str | None:
    """The service name to trace under, if OpenTelemetry's own variables name where to send traces to."""
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if not any(os.environ.get(name) for name in endpoints):
        return None
    return os.environ.get("OTEL_SERVICE_NAME", "tenora")


class StoreSettings(BaseSettings):
    """What commands need that work on a store without a server."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    base: str = Field("embedded", min_length=1, description="The base model: embedded, minilm, a folder, or a hub id.")
    base_revision: str | None = Field(None, description="Revision of a base that comes from a hub.")
    store: Path = Field(Path("store"), description="Folder of the adapter store; made if it is not there.")
    database: str | None = Field(
        None,
        repr=False,
        description="Where names, keys and usage are kept: postgresql://USER:PASSWORD@HOST/NAME, or sqlite:///FILE; "
        "if unset a file in the store.",
    )
    delete_grace: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        300.0, description="Seconds for which the files of a deleted version stay, for requests that are in flight."
    )


class Settings(StoreSettings):
    """Settings of `tenora serve`."""

    host: Literal["127.0.0.1", "localhost", "0.0.0.0", "::"] = Field(  # noqa: S104
        "127.0.0.1", description="Address to listen on; 0.0.0.0 and :: can be reached from other machines."
    )
    port: int = Field(8000, ge=1024, le=65535, description="Port to listen on.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Numbers of the base; auto is bfloat16 where the device computes in it."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the base runs; auto is cuda if present.")
    kernels: Literal["auto", "torch", "native"] = Field(
        "auto", description="What computes on a CPU: compiled for it, torch alone, or auto: compiled where it can be."
    )
    quantize: Literal["none", "int8"] = Field(
        "none",
        description="int8 rounds the base's weights: 0.6 of their memory, and on a CPU 0.7 to 0.8 of a step's time.",
    )
    threads: PositiveInt | None = Field(None, description="Threads of the CPU kernels; PyTorch's choice if unset.")
    examples: bool = Field(
        False, description="Publish the adapters that come with the embedded base, as far as the store lacks them."
    )

    max_running: PositiveInt = Field(32, description="Sequences that may hold KV cache at once.")
    max_model_len: PositiveInt | None = Field(
        None,
        description="Longest prompt plus answer in tokens; if unset the base's, or what lets eight fit the KV cache.",
    )
    max_step_tokens: PositiveInt = Field(512, description="Tokens that one step may compute.")
    adapter_slots: PositiveInt = Field(16, description="Adapters resident in device memory at once.")
    max_lora_rank: PositiveInt = Field(64, description="Largest adapter rank that is served.")
    kv_cache_bytes: PositiveInt = Field(4 << 30, description="Upper bound of the KV cache in bytes.")
    prefix_reuse: bool = Field(
        True, description="Compute a prompt's beginning once for requests of one tenant and adapter that share it."
    )
    host_cache_bytes: int = Field(1 << 30, ge=0, description="Upper bound of the cache of read adapters in bytes.")

    api_keys: dict[str, str] = Field(
        default_factory=dict,
        repr=False,
        description='Fixed keys and their tenants as JSON: {"key": "tenant"}; the tenant "*" sees every tenant. '
        "Others are made with `tenora keys create`, while the server runs.",
    )
    allow_no_auth: bool = Field(False, description="Serve other machines although there are no API keys.")
    adapter_folders: tuple[Path, ...] = Field(
        (), description="Folders, as a JSON list, that /v1/load_lora_adapter may import adapters from."
    )

    max_queue: PositiveInt = Field(1024, description="Sequences that may be in flight; more are answered with 429.")
    request_timeout: PositiveSeconds = Field(
        120.0, description="Seconds until a request is answered with 504; a request may ask for less."
    )
    max_body_bytes: PositiveInt = Field(4 << 20, description="Largest request body; more is answered with 413.")
    body_timeout: PositiveSeconds = Field(
        30.0, description="Seconds that a request body may take to arrive; a slower one is answered with 408."
    )
    max_upload_bytes: PositiveInt = Field(
        1 << 30, description="Largest upload of an adapter, and the most that an archive may unpack to."
    )
    upload_timeout: PositiveSeconds = Field(
        600.0, description="Seconds that an upload may take to arrive, and again to be checked and published."
    )
    default_max_tokens: PositiveInt = Field(
        256, description="Length of an answer to chat and instruct when the request does not say."
    )
    drain_timeout: PositiveInt = Field(30, description="Seconds that running requests get to finish on SIGTERM.")
    log_level: LogLevel = Field("warning", description="What is logged; info adds a line per request.")
    log_format: LogFormat = Field("text", description="How: text for people, json for machines.")
    metrics_top_k: PositiveInt = Field(
        20, description="Pairs of tenant and adapter, the busiest, that have series of their own on /metrics."
    )

    @field_validator("api_keys")
    @classmethod
    def _check_keys(cls, keys: dict[str, str]) -> dict[str, str]:
        for key, tenant in keys.items():
            if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError("an API key has at least 8 printable ASCII characters and no space")
            if tenant != EVERY_TENANT:
                _check_tenant(tenant)
        return keys

    @property
    def open_without_keys(self) -> bool:
        """Whether a server without a single key answers everybody: on this machine only, or because it was told to."""
        return self.host in LOOPBACK or self.allow_no_auth

    @property
    def listen_host(self) -> str:
        """The address as the HTTP server wants it."""
        return "127.0.0.1" if self.host == "localhost" else self.host

    @property
    def url(self) -> str:
        """Where a client on this machine finds the server."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.listen_host, self.listen_host)  # noqa: S104
        return f"http://{host}:{self.port}"


class ClientSettings(BaseSettings):
    """Settings of the commands that talk to a running server."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    url: str = Field("http://127.0.0.1:8000", description="Where the server is.")
    api_key: SecretStr | None = Field(None, description="The key that the client shows.")


class SettingsError(ValueError):
    """The settings are not usable; the message is one line per problem."""


def load_settings(**flags: Any) -> Settings:
    """Read the environment; flags that are not None win over it.

    Raises:
        SettingsError: A value is wrong or the server would be open to anyone.
    """
    return _load(Settings, flags)


def load_store_settings(**flags: Any) -> StoreSettings:
    """Read what a command needs that works on a store; as :func:`load_settings`."""
    return _load(StoreSettings, flags)


def load_client_settings(**flags: Any) -> ClientSettings:
    """Read the settings of a client; as :func:`load_settings`."""
    return _load(ClientSettings, flags)


def unknown_variables() -> list[str]:
    """Variables with our prefix that are no setting: most likely a slip of the pen."""
    known = {f"{PREFIX}{name}".upper() for name in (*Settings.model_fields, *ClientSettings.model_fields)}
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name.upper() not in known)


def _load(kind: type[AnySettings], flags: Mapping[str, Any]) -> AnySettings:
    try:
        return kind(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(problem) for problem in error.errors())) from error
    except UnreadableError as error:
        field = str(error).split('"')[1] if '"' in str(error) else "a setting"
        raise SettingsError(f"{PREFIX}{field.upper()} is not valid JSON") from error


def _check_tenant(tenant: str) -> None:
    try:
        check_part(tenant, "tenant")
    except AdapterNameError as error:
        raise ValueError(error.message) from error


def _explain(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"][:1])
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
