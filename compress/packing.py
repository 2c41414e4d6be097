"""One file that holds a whole compressed model, entropy coded.

Layout of version 4: the three bytes `ALP`; one byte, the version; four bytes, the CRC-32 of all that follows, little
endian; the length of the block (a number of `compress.entropy_coding`; 0 if nothing follows it); the block; then
streams of `compress.entropy_coding`, one after another.

The block is one arithmetic code (`compress.arithmetic_coding`, `compress.bit_model`) of, in this order: the header,
JSON `[about, names of sets]` (`compress.json_coding`; the words of this format take a number, nothing else is known of
it beforehand); each set of integers; 16 bits of a CRC-32 over name, shape, dtype and bits of
every tensor; then the tensors, sorted by name: a bit that says whether the tensor follows in the block
(`compress.context_coding`) or as a stream, and of a stream its length.

Versions 2 and 3, which are read too, hold the header as text, for which the reader had learned from examples.

Names, shapes and dtypes of the tensors are not in the file: who reads it knows them from the model (see
`compress.artifact`), and the 16 bits tell whether they are those that were written.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from compress.arithmetic_coding import BitDecoder, BitEncoder
from compress.bit_model import BitModel
from compress.context_coding import MOST_SET, code_set, code_text
from compress.entropy_coding import read_number, write_number
from compress.errors import ArtifactError, CompressError
from compress.files import write_atomic
from compress.json_coding import code_json
from compress.tensor_coding import CodedTensor, TensorForm, TensorReader, TensorWriter

MAGIC, VERSION = b"ALP", 4
_PREFIX = len(MAGIC) + 5
# What headers are made of, see `compress.packed_header`. New words go to the end: files hold their places.
_WORDS = (
    "inputs", "layers", "bits", "activation_bits", "activation_ranges", "quantized", "activations", "reduce_range",
    "formatted", "norms", "tied", "tensors", "about", "model", "data", "task", "class_names", "input", "layout",
    "shape", "mean", "std", "dtype", "axis", "scale", "format", "scheme", "granularity", "group_size", "density",
    "pattern", "rank", "rank_scheme", "args", "kwargs", "items", "list", "entries", "channel", "tensor", "group",
    "symmetric", "affine", "power_of_two", "codebook", "ternary", "binary", "float32", "float16", "bfloat16", "int64",
    "static", "dynamic", "spatial", "unstructured", "NCHW", "tokens", "classification",
)  # fmt: skip
# What readers of headers of earlier versions begin with.
_USUAL_2 = (
    b'[{"inputs":[[64,3,32,32]],"bits":{"layer1.0.conv1":4,"layer1.0.conv2":4,"layer2.1.conv1":3,"linear":8},"quantized":'
    b'{"activations":true,"reduce_range":true},"norms":["bn1.running_mean","layer1.0.bn1.running_mean"],"tied":{"'
    b'again.weight":"fc.weight"},"tensors":{"fc1.weight":{"shape":[100,300],"dtype":"float32","bits":4,"axis":0,"scale":"'
    b'fc1.weight_scale"}},"about":{"model":"resnet_cifar","data":"cifar10","task":"classification"}},["layer1.0.conv1:out"'
    b',"conv1:out","fc1:out","fc2:out"]][{"inputs":[[1,1,28,28]],"bits":{"fc1":3,"fc2":4,"fc3":4},"quantized":{"'
    b'activations":false,"reduce_range":false},"about":{"model":"lenet300","data":"mnist","task":"classification"}},["fc1:'
    b'out","fc2:out"]][{"inputs":[[1,1,28,28]],"bits":{"conv1":4,"conv2":3,"fc1":2,"fc2":4},"quantized":{"activations":'
    b'false,"reduce_range":true},"about":{"model":"lenet5","data":"mnist","task":"classification"}},["conv1:out",'
    b'"conv2:out","fc1:out"]]'
)
_USUAL_3 = _USUAL_2 + (
    b'[{"inputs":[[2,3,32,32]],"bits":{"conv1":6,"layer1.0.conv1":4,"layer1.1.conv2":3,"layer2.2.conv1":4,"layer3.0.conv2"'
    b':2,"linear":6},"formatted":true,"class_names":["airplane","automobile"],"input":{"layout":"NCHW","mean":[0.485,0.456'
    b',0.406],"shape":[3,32,32],"std":[0.229,0.224,0.225]}},["layer1.0.conv1:out","layer1.2.conv1:out","layer2.1.conv1:out'
    b'"]][{"inputs":[[2,1,28,28]],"bits":{"fc1":{"bits":3,"granularity":"tensor","density":0.5},"fc2":{"bits":3,'
    b'"granularity":"tensor","density":0.5},"fc3":{"bits":3,"granularity":"tensor","density":0.5}},"formatted":true,"about"'
    b':{"model":"lenet300","data":"mnist"}},[]][{"inputs":[[2,1,28,28]],"bits":{"conv1":{"bits":4,"granularity":"tensor"},'
    b'"conv2":{"bits":4,"granularity":"tensor"},"fc1":{"bits":4,"granularity":"tensor"},"fc2":{"bits":4,"granularity":'
    b'"tensor"}},"formatted":true,"about":{"model":"lenet5","data":"mnist"}},["conv1:out","conv2:out","fc1:out"]]'
)
_BEGINNINGS = {2: _USUAL_2, 3: _USUAL_3}
_VERSIONS = (*_BEGINNINGS, VERSION)


def write_packed(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    bits: Mapping[str, int],
    about: Any,
    coder: str = "auto",
    sets: Mapping[str, Sequence[int]] | Mapping[int, Sequence[int]] | None = None,
) -> list[CodedTensor]:
    """Write the file, atomically, and tell what each tensor takes, sorted by name.

    Args:
        tensors: by name; those in `bits` are int8, or uint8 where no integer is negative.
        bits: name -> bits of each integer, 1 to 8.
        about: plain JSON.
        coder: `"auto"`: in context, or the range coder where that takes fewer bytes or context would take longer than
            about 30 seconds; `"context"`: whatever it takes; or one of `encode_integers`.
        sets: name, or number, -> distinct non-negative integers.

    Raises:
        ArtifactError: if the file cannot be written. CompressError: for an unknown coder, or what is no plain JSON.
    """
    sets = sets or {}
    encoder = BitEncoder()
    model = BitModel(encoder)
    writer = TensorWriter(model, coder)
    try:
        code_json(model, [about, list(sets)], _WORDS)
    except (ArtifactError, UnicodeError, AttributeError, TypeError, ValueError) as error:
        raise CompressError(
            f"A packed file cannot hold this header ({error}). Give it plain and shorter JSON."
        ) from None
    for members in sets.values():
        code_set(model, members)
    forms = {name: TensorForm(tuple(value.shape), str(value.dtype).removeprefix("torch."), bits.get(name))
             for name, value in tensors.items()}  # fmt: skip
    model.plain(_checksum(forms), 16)
    told = [writer.write(name, tensors[name], forms[name]) for name in sorted(forms)]
    block = encoder.finish()
    body = write_number(len(block) if writer.streams else 0) + block + b"".join(writer.streams)
    write_atomic(
        path, lambda file: file.write(MAGIC + bytes([VERSION]) + zlib.crc32(body).to_bytes(4, "little") + body)
    )
    return told


class PackedFile:
    """A packed file whose header was read.

    Attributes:
        path: of the file.
        about: the JSON that `write_packed` was given.
        sets: name, or number, -> its members, sorted.
        coded: what each tensor takes in it, once they were read.

    Raises:
        ArtifactError: naming the file, if it is missing, of another kind or version, truncated or altered.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        version, body = _checked_body(self.path)
        try:
            length, place = read_number(body, 0)
            if length > len(body) - place:
                raise ValueError("it ends within its first block")
            end = place + length if length else len(body)
            self._model = BitModel(BitDecoder(body[place:end]))
            self._streams, self._place = body[end:], 0
            self.about, names = self._read_header(version)
            self.sets = self._read_sets(names)
            self._checksum = self._model.plain(0, 16)
            self.coded: list[CodedTensor] = []
        except (ArtifactError, ValueError, TypeError, RecursionError) as error:
            raise ArtifactError(f"{self.path} is damaged ({error}). Save the artifact again.") from None

    def tensors(self, forms: Mapping[str, TensorForm]) -> dict[str, Tensor]:
        """The tensors by name, read once; small integers as int8 or uint8.

        Args:
            forms: of all tensors that were written.

        Raises:
            ArtifactError: if these are other forms than were written, or the file is damaged.
        """
        if _checksum(forms) != self._checksum:
            raise ArtifactError(
                f"{self.path} does not fit the model that its plan gives: other names or shapes of tensors. Load it "
                f"with the model and the version that it was saved with."
            )
        reader = TensorReader(self._model, self._take)
        try:
            found = {name: reader.read(name, forms[name]) for name in sorted(forms)}
            if self._place != len(self._streams):
                raise ValueError(f"{len(self._streams) - self._place} bytes are left over")
            self.coded = reader.coded
        except (ArtifactError, ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
            raise ArtifactError(f"{self.path} is damaged ({error}). Save the artifact again.") from None
        return found

    def _read_header(self, version: int) -> Any:
        if version == VERSION:
            return code_json(self._model, None, _WORDS)
        return json.loads(code_text(self._model, b"", _BEGINNINGS[version]))

    def _read_sets(self, names: Sequence[str | int]) -> dict[str | int, tuple[int, ...]]:
        found, left = {}, MOST_SET
        for name in names:
            if not isinstance(name, (str, int)):
                raise ValueError("a set has no name")
            found[name] = tuple(code_set(self._model, [], left))
            left -= max(found[name], default=0) + 1
        return found

    def _take(self, length: int) -> bytes:
        found = self._streams[self._place : self._place + length]
        if len(found) < length:
            raise ArtifactError("It ends within a stream.")
        self._place += length
        return found


def _checked_body(path: Path) -> tuple[int, bytes]:
    """The version of a file and what follows its checksum."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"Cannot read {path}: {error.strerror or error}.") from error
    if data[: len(MAGIC)] != MAGIC:
        raise ArtifactError(f"{path} is no packed model: it does not begin with {MAGIC.decode()}.")
    if len(data) < _PREFIX or data[len(MAGIC)] not in _VERSIONS:
        known = " and ".join(map(str, _VERSIONS))
        raise ArtifactError(f"{path} is a packed model of another version than {known}, or truncated.")
    body = data[_PREFIX:]
    if zlib.crc32(body) != int.from_bytes(data[len(MAGIC) + 1 : _PREFIX], "little"):
        raise ArtifactError(f"{path} is truncated or altered (its checksum is not that of its content). Copy it again.")
    return data[len(MAGIC)], body


def _checksum(forms: Mapping[str, TensorForm]) -> int:
    lines = [f"{name} {list(form.shape)} {form.dtype} {form.bits}" for name, form in sorted(forms.items())]
    return zlib.crc32("\n".join(lines).encode()) & 0xFFFF
