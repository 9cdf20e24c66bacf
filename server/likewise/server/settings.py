"""Every knob of a server process, read once in `main` from LIKEWISE_* variables and command-line options.

Nothing further in sees this class: the parts take plain values. A field's name carries its unit; its description is
what `likewise serve --help` and the documentation print.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from likewise.server.processors import usable_processors

PREFIX = "LIKEWISE_"


class Settings(BaseSettings):
    """Configuration of one server process.

    An option given explicitly beats the environment, the environment beats the default. An unknown option is refused;
    `unknown_variables` names variables that look like options and are none.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    store: str = Field(default="./likewise-store", min_length=1, description="Folder or URI that holds the galleries.")
    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address to listen on. Anything but loopback opens the server to others.",
    )
    port: int = Field(default=50051, ge=0, le=65535, description="gRPC port; 0 takes any free one.")
    share_port: bool = Field(
        default=False,
        description="Further routers of this machine may listen on the same port; the system spreads connections.",
    )
    socket: Path | None = Field(
        default=None,
        description="Unix socket to listen on beside the port. Clients of this machine name it unix:/path.",
    )
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="HTTP port for Prometheus at /metrics; 0 takes any free one, unset means none.",
    )
    models: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(),
        description="Folders with model repositories besides the built-in one, comma-separated in the environment.",
    )
    cache: Path | None = Field(
        default=None,
        description="Folder for built indexes, safe to delete. Default: beside the store when that is a folder.",
    )
    export_root: Path | None = Field(
        default=None,
        description="Folder for exports and imports of galleries; of a cluster, on the machine of its controller. "
        "Default: neither is served.",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Threads for search and inference. Default: one for each CPU this process may use, by its "
        "affinity and its control group's quota.",
    )

    image_max_bytes: int = Field(default=20 << 20, ge=1, le=64 << 20, description="Largest encoded image, in bytes.")
    image_max_pixels: int = Field(
        default=50_000_000,
        ge=1,
        le=1_000_000_000,
        description="Largest decoded image, in pixels; bombs are refused unread.",
    )

    encoder_batch: int = Field(default=32, ge=1, le=4096, description="Most images or texts one inference takes.")
    encoder_wait_ms: float = Field(
        default=0.0, ge=0, le=1000, description="Longest wait of an idle encoder for a fuller batch, in milliseconds."
    )
    encoder_queue: int = Field(
        default=4096, ge=1, le=1_000_000, description="Images or texts waiting for an encoder before refusal."
    )
    kept_encodings: int = Field(
        default=2048,
        ge=0,
        le=1_000_000,
        description="Encodings of query texts and pictures kept for each encoder, the last asked for; 0: none.",
    )
    encoder_device: Literal["cpu", "cuda"] = Field(
        default="cpu", description="Where models of the repositories run; a GPU that cannot be had stops the start."
    )
    encoder_fallback: bool = Field(
        default=False, description="Run models on the CPU, with a warning, where the GPU asked for cannot be had."
    )
    encoder_gpu: int = Field(default=0, ge=0, le=63, description="Number of the GPU that models run on.")
    encoder_gpu_bytes: int | None = Field(
        default=None, ge=1 << 20, description="Most GPU memory of each model's arena, in bytes. Default: no limit."
    )

    shard_queue: int = Field(
        default=4096, ge=1, le=1_000_000, description="Queries waiting for a shard before refusal."
    )
    recall_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Time for checking the recall of live searches, as a share of the time they take; 0: never.",
    )
    partial_index_share: float = Field(
        default=0.5,
        ge=0,
        le=10,
        description="Memory for indexes of single filters, as a share of what a shard's indexes take; 0: none.",
    )

    shard_cpus: float = Field(
        default=0.02, ge=0, le=1024, description="CPUs that Ray sets aside for each replica of a shard; no limit."
    )
    shard_gpus: float = Field(
        default=0.0, ge=0, le=64, description="GPUs that Ray sets aside for each replica of a shard; may be a fraction."
    )
    writer_cpus: float = Field(
        default=0.02, ge=0, le=1024, description="CPUs that Ray sets aside for each gallery's writer; no limit."
    )
    encoder_cpus: float = Field(
        default=0.02, ge=0, le=1024, description="CPUs that Ray sets aside for each encoder; no limit."
    )
    encoder_gpus: float = Field(
        default=0.0, ge=0, le=64, description="GPUs that Ray sets aside for each encoder; may be a fraction."
    )
    encoder_replicas: int = Field(
        default=1, ge=1, le=64, description="Encoders of each model family on a cluster, on different nodes if it can."
    )
    controller_port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="Port of the cluster's controller, which stand-alone routers connect to; 0 takes any free one.",
    )

    write_group_rows: int = Field(
        default=8192, ge=1, le=1_000_000, description="Rows from which a group commit takes no more."
    )
    write_queue_rows: int = Field(
        default=200_000, ge=1, le=100_000_000, description="Rows waiting for the writer before refusal."
    )
    write_queue_bytes: int = Field(
        default=512 << 20, ge=1 << 20, le=1 << 40, description="Bytes waiting for the writer before refusal."
    )

    max_calls: int = Field(
        default=2048, ge=1, le=1_000_000, description="Calls in progress before further ones are refused."
    )
    max_unread_calls: int = Field(
        default=512,
        ge=2,
        le=100_000,
        description="Calls not yet taken up before further ones are dropped as CANCELLED; some are from half of it on.",
    )
    batch_concurrency: int = Field(
        default=64, ge=1, le=1000, description="Searches of one BatchSearch, encoded and composed at the same time."
    )
    stream_in_flight: int = Field(
        default=32, ge=1, le=4096, description="Messages of one stream in work at the same time."
    )
    drain_grace_s: float = Field(
        default=20.0, ge=0, le=3600, description="Seconds that running calls have to finish after SIGTERM or SIGINT."
    )

    log_format: Literal["text", "json"] = Field(
        default="text", description="One line a record: text for people, json for machines."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Least severe record written."
    )

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part for part in value.split(",") if part) if isinstance(value, str) else value

    @property
    def thread_count(self) -> int:
        """Threads to use: `threads`, else the CPUs this process may use."""
        return usable_processors() if self.threads is None else self.threads


def unknown_variables(names: Iterable[str]) -> list[str]:
    """Those of the environment variables `names` that start like ours and mean nothing: most likely misspelt."""
    known = {PREFIX + field.upper() for field in Settings.model_fields}
    return sorted(name for name in names if name.startswith(PREFIX) and name not in known)
