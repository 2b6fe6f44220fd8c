"""Weights files: detection of their network from the contents, with errors that say what was expected and found."""

from __future__ import annotations

import hashlib
import logging
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loftr_ros.matcher.build import Network, build_network
from loftr_ros.matcher.checkpoints.efficient import in_our_layout
from loftr_ros.matcher.checkpoints.recognition import (
    FORMAT,
    Recognition,
    WeightsError,
    metadata_of_config,
    recognise,
    same_weights,
)
from loftr_ros.matcher.config import AUTO, DEFAULT_PRESET, PRESETS, CompactConfig, LoFTRConfig, NetworkConfig
from loftr_ros.text_files import what_it_is
from loftr_ros.whole_files import replacing

__all__ = [
    "WeightsError",
    "WeightsFile",
    "check_weights",
    "fingerprint_of",
    "load_network",
    "load_weights",
    "preset",
    "read_weights",
    "recognise_file",
    "save_network_weights",
    "sha256_of",
]

# Keys under which published files store weights: Lightning's and the official LoFTR's, the low-end network's.
_CONTAINERS = ("state_dict", "model_state_dict", "model")
# DistributedDataParallel prefixes every name, and the official Lightning module adds its attribute's name.
_PREFIXES = ("module.", "matcher.")
# Buffers of old files; the positional encoding is computed here.
_COMPUTED = ("pos_encoding.",)
# Settings that a caller may change without changing the weights.
_ADJUSTABLE = ("threshold", "border", "max_matches")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightsFile:
    """Contents of a weights file.

    Attributes:
        path: of the file.
        tensors: the weights on the CPU, by the names used here.
        layout: description of how the file wraps them.
        metadata: of the file; empty for PyTorch's.
    """

    path: Path
    tensors: dict[str, Tensor]
    layout: str
    metadata: Mapping[str, str]


def preset(network: str) -> NetworkConfig:
    """The preset of this name.

    Raises:
        WeightsError: there is none.
    """
    if network not in PRESETS:
        raise WeightsError(f"network '{network}' is not known; expected one of {', '.join(PRESETS)}")
    return PRESETS[network]


def load_network(
    network: str,
    weights: Path | None,
    device: torch.device,
    dtype: torch.dtype,
    *,
    coarse: Mapping[str, Any] | None = None,
) -> Network:
    """Build a network, load its weights and prepare it for inference.

    Args:
        network: name of a preset; `auto` detects the file's network, or takes the default without a file.
        weights: a file in any published layout of this network. None for random weights, always the same ones, to
            measure a network's cost: they match nothing.
        device, dtype: where and in which precision it runs.
        coarse: replacements of `CoarseMatchingConfig`'s threshold, border and max_matches.

    Raises:
        WeightsError: the preset or the file is missing, the file is damaged or of another network.
        ValueError: `coarse` has another field.
    """
    file = None
    if weights is None:
        config = preset(DEFAULT_PRESET if network == AUTO else network)
    else:
        asked = None if network == AUTO else preset(network)
        file = read_weights(weights)
        config = _choose(asked, file)
    unknown = [name for name in coarse or {} if name not in _ADJUSTABLE]
    if unknown:
        raise ValueError(f"coarse matching: {', '.join(unknown)} cannot be replaced; only {', '.join(_ADJUSTABLE)} can")
    model = _build(replace(config, coarse=replace(config.coarse, **(coarse or {}))))
    if file is not None:
        load_weights(model, file)
    model.fingerprint = fingerprint_of(model.config, model.state_dict())
    return model.prepare(device, dtype)


def fingerprint_of(config: NetworkConfig, state_dict: Mapping[str, Tensor]) -> str:
    """Identifier of the features that a network computes: see `Matcher.fingerprint`.

    Args:
        config: the network; stages after the features do not count.
        state_dict: its weights as stored in a file, before `prepare`.

    Returns:
        16 hexadecimal digits.
    """
    slip = isinstance(config, LoFTRConfig) and config.position_slip
    digest = hashlib.sha256(f"{config.backbone} {config.transformer} {slip}".encode())
    parts: tuple[str, ...] = ("",)
    if isinstance(config, CompactConfig):  # what follows can be trained again, and features stay the same
        layers = [*config.transformer.layers, "cross"]
        parts = ("backbone.", *(f"transformer.layers.{number}." for number in range(layers.index("cross"))))
    for name, value in sorted(_used(config, state_dict).items()):
        if name.startswith(parts) and not name.endswith("num_batches_tracked"):
            digest.update(name.encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().data)
    return digest.hexdigest()[:16]


def load_weights(model: Network, file: WeightsFile) -> None:
    """Load exactly a file's weights into a network that is not prepared yet.

    Raises:
        WeightsError: they are of another network, or not finite.
    """
    model.load_state_dict(check_weights(model.config, file), strict=False)


def check_weights(config: NetworkConfig, file: WeightsFile) -> dict[str, Tensor]:
    """The weights of a file after checking that they are complete, of the right shapes, and finite.

    Raises:
        WeightsError: they are of another network, or not finite.
    """
    found = _used(config, file.tensors)
    problems = _differences(config, found)
    if problems:
        try:
            recognised = recognise(file.tensors, file.metadata)
            names = " or ".join(f"'{name}'" for name in (recognised.config.name, *recognised.alternatives))
            looks = f" It looks like {names}."
        except WeightsError:
            looks = ""
        raise WeightsError(
            f"{file.path} holds weights of another network than '{config.name}' ({'; '.join(problems)}).{looks} "
            f"Give a weights file of '{config.name}', or the network that this file belongs to"
        )
    broken = [name for name, value in found.items() if not torch.isfinite(value).all()]
    if broken:
        raise WeightsError(
            f"{file.path} holds values that are not finite, in {broken[0]}: the file is damaged; get it again"
        )
    return found


def recognise_file(file: WeightsFile) -> Recognition:
    """Detect the network of a file's weights.

    Raises:
        WeightsError: it is unknown; the message says what was expected and found.
    """
    try:
        return recognise(file.tensors, file.metadata, lambda: sha256_of(file.path))
    except WeightsError as error:
        raise WeightsError(f"{file.path} ({file.layout}): {error}") from None


def read_weights(path: Path) -> WeightsFile:
    """Read the named tensors of a weights file, whatever wraps them. Executes no code from the file.

    Raises:
        WeightsError: the file is missing, damaged, or has no weights.
    """
    if not path.is_file():
        raise WeightsError(f"weights file {path} does not exist; set the parameter 'weights' to an existing file")
    if _is_safetensors(path):
        return _read_safetensors(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the loader raises any kind of error on bytes that are not weights
        if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path):
            raise WeightsError(
                f"weights file {path} holds Python objects beside tensors. Loading them could run any code, so it "
                "is not loaded. Save the state dict alone: torch.save(model.state_dict(), FILE)"
            ) from error
        raise _unreadable(path, "PyTorch", error) from error
    layout = "PyTorch"
    if isinstance(content, Mapping):
        for container in _CONTAINERS:
            if isinstance(content.get(container), Mapping):
                beside = [str(name) for name in content if name != container]
                layout += f", in '{container}'" + (f" beside {', '.join(beside)}" if beside else "")
                content = content[container]
                break
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    ):
        kind = f"keys {list(content)[:5]}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise WeightsError(
            f"{path} holds {kind}, no weights by name; expected a state dict, or one under {_CONTAINERS}"
        )
    weights = dict(content)
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
            layout += f", names prefixed '{prefix}'"
    return _in_our_layout(path, weights, layout, {})


def save_network_weights(path: Path, state_dict: Mapping[str, Tensor], config: NetworkConfig, source: str) -> None:
    """Write weights in our own format: one safetensors file with the network in its metadata.

    Args:
        path: the file; it is written atomically.
        state_dict: of a network that is not prepared; untrained parts are left out.
        config: the network.
        source: origin of the weights, for people.

    Raises:
        WeightsError: the weights do not fit the network, or are not finite; the file cannot be written.
    """
    serialised = _safetensors("save")
    found = check_weights(config, WeightsFile(Path("the state dict"), dict(state_dict), "state dict", {}))
    # Clone each: safetensors refuses tensors that share memory, and writes a tensor's memory including gaps.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in found.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            # Not by save_file, whose files are unreadable to others, whatever the umask.
            part.write_bytes(serialised(tensors, metadata=metadata_of_config(config, source)))
    except OSError as error:
        raise WeightsError(f"{path} cannot be written: {error}") from error


def sha256_of(path: Path) -> str:
    """A file's SHA-256, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _choose(asked: NetworkConfig | None, file: WeightsFile) -> NetworkConfig:
    """Choose the network to build: the one requested by the user, or the one of the file."""
    if asked is None:
        found = recognise_file(file)
        if found.doubt:
            _logger.warning("%s: names and shapes do not determine %s", file.path, found.doubt)
        return found.config
    try:
        found = recognise_file(file)
    except WeightsError:
        return asked  # errors of the file are then reported against the requested network
    if found.config.name == asked.name:
        return found.config  # our own file may have been trained with other values than the preset's
    if not found.alternatives and asked.name not in found.also and same_weights(found.config, asked):
        _logger.warning("%s was trained as '%s'; it runs as '%s'", file.path, found.config.name, asked.name)
    return asked


def _build(config: NetworkConfig) -> Network:
    """A network with random weights, always the same ones; the program's own random state is unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return build_network(config)


def _used(config: NetworkConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    unused = (*config.untrained, *_COMPUTED)
    return {name: value for name, value in weights.items() if not name.startswith(unused)}


def _differences(config: NetworkConfig, found: Mapping[str, Tensor]) -> list[str]:
    """Description of the differences between weights and a network."""
    with torch.device("meta"):  # names and shapes only, at no cost
        expected = build_network(config).state_dict()
    missing = [name for name in expected if name not in found and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in found if name not in expected]
    misshapen = [
        f"{name} {tuple(found[name].shape)} (expected {tuple(value.shape)})"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    return [
        f"{what} {len(names)}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        for what, names in (("missing", missing), ("of another shape", misshapen), ("not of this network", unexpected))
        if names
    ]


def _is_safetensors(path: Path) -> bool:
    """Whether a file looks like safetensors: it begins with the length of a JSON object and that object."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path) -> WeightsFile:
    safe_open = _safetensors("safe_open")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            # Clone each: the file is memory-mapped, and may be replaced while the network is in use.
            weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except Exception as error:  # safetensors' own errors, OSError, and torch's for types that it lacks
        raise _unreadable(path, "safetensors", error) from error
    if not weights:
        raise WeightsError(f"{path} is a safetensors file without a tensor; expected weights by name")
    ours = metadata.get("format") == FORMAT
    return _in_our_layout(path, weights, "loftr_ros (safetensors)" if ours else "safetensors", metadata)


def _in_our_layout(path: Path, weights: dict[str, Tensor], layout: str, metadata: Mapping[str, str]) -> WeightsFile:
    """Convert weights to this network's layout, for networks published in several ones."""
    weights, steps = in_our_layout(weights)
    return WeightsFile(path, weights, f"{layout}, {steps}" if steps else layout, metadata)


def _safetensors(name: str) -> Any:
    """A function of safetensors, imported only for such files."""
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise WeightsError(f"{error}: files of this kind need safetensors; pip install safetensors") from error
    return safetensors.safe_open if name == "safe_open" else getattr(safetensors.torch, name)


# Kinds of files that people save as weights by mistake, by their first bytes.
_MISTAKEN = (
    (b"\x1f\x8b", "compressed by gzip; unpack it with `gunzip`"),
    (b"\xfd7zXZ", "compressed by xz; unpack it with `unxz`"),
    (b"BZh", "compressed by bzip2; unpack it with `bunzip2`"),
    (b"(\xb5/\xfd", "compressed by zstd; unpack it with `zstd -d`"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it"),
    (b"\x89HDF", "an HDF5 file, as Keras writes; expected weights of PyTorch"),
    (b"\x93NUMPY", "a NumPy array; expected weights by name"),
    (b"%PDF", "a PDF"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"\x7fELF", "a program"),
    (b"{", "JSON, perhaps a server's error message; get the file again"),
    (b"\x08", "perhaps an ONNX model; give it as `weights` with backend onnx, as `loftr_ros export` writes it"),
)


def _unreadable(path: Path, kind: str, error: Exception) -> WeightsError:
    """Why a file is not weights, by its first bytes; the loader's own message recommends something unsafe."""
    with path.open("rb") as file:
        head = file.read(512)
    size = path.stat().st_size
    what = what_it_is(head) or next((name for magic, name in _MISTAKEN if head.startswith(magic)), None)
    if not head:
        return WeightsError(f"weights file {path} is empty; get it again")
    if what is not None:
        return WeightsError(f"weights file {path} ({size} bytes) is {what}")
    if isinstance(error, pickle.UnpicklingError) and head.startswith(b"\x80"):
        return WeightsError(
            f"weights file {path} ({size} bytes) holds Python objects beside tensors. Loading them could run "
            "any code, so it is not loaded. Save the state dict alone: torch.save(model.state_dict(), FILE)"
        )
    return WeightsError(
        f"{path} ({size} bytes) is not a readable {kind} weights file: it was cut off, or is of another kind; get "
        "it again"
    )
