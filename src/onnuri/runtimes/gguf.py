"""llama.cpp: executes `onnuri/model.gguf` of a model folder, a language model with its vocabulary in one file."""

import ctypes
import hashlib
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from ..data import Records
from ..errors import BadInput, needs_extra
from ..family import Batch, Choose, Decoder, Outputs
from ..model import Model
from ..operation import Log
from ..runtime import Choice, Runtime
from . import gguf_file

ARTEFACT = "onnuri/model.gguf"
LEAST = 256  # tokens that a context is made for
CELLS = 4096  # tokens of all texts that are written at once: for each, all layers keep keys and values
COMPARED = 200  # texts that both tokenizers cut
KEPT: list[Any] = []  # what the library calls as long as it lives


@cache
def llama_cpp() -> Any:
    """The library, made silent."""
    try:
        import llama_cpp  # pyright: ignore[reportMissingImports]  # built from source: in no environment of the tests
    except ImportError:
        raise needs_extra("gguf", "llama-cpp-python") from None
    KEPT.append(llama_cpp.llama_log_callback(lambda level, text, data: None))
    llama_cpp.llama_log_set(KEPT[-1], ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


class GgufSession(Decoder):
    """A GGUF file opened by llama.cpp. Its cache holds what the file's numbers are computed in: fp32 where those are."""

    runtime = "gguf"

    def __init__(self, path: Path, place: TemporaryDirectory | None = None):
        """`place`: a folder for the file alone, which goes with the session."""
        super().__init__()
        lib = self.lib = llama_cpp()
        self.path, self.place, self.context, self.room = path, place, None, (0, 0)
        options = lib.llama_model_default_params()
        self.model = lib.llama_model_load_from_file(str(path).encode(), options)
        if not self.model:
            raise BadInput(f"{path} cannot be run by llama.cpp", hint="export the model again")
        self.vocabulary = lib.llama_model_get_vocab(self.model)
        self.num_tokens = lib.llama_vocab_n_tokens(self.vocabulary)

    def __deepcopy__(self, memo: dict) -> "GgufSession":
        copy = GgufSession(self.path, self.place)
        copy.original = self.original
        return copy

    def __del__(self) -> None:
        if self.__dict__.get("context"):
            self.lib.llama_free(self.context)
        if self.__dict__.get("model"):
            self.lib.llama_model_free(self.model)

    def get_extra_state(self) -> bytes:
        """What stands for the weights, so that digests see it."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    def save(self, folder: Path) -> None:
        (folder / ARTEFACT).parent.mkdir(exist_ok=True)
        shutil.copyfile(self.path, folder / ARTEFACT)

    # ------------------------------------------------------------------------------------------------------- computing

    def forward(self, batch: Batch) -> Outputs:
        """Each sequence by itself, so that no padding is computed."""
        ids, mask = batch["input_ids"], batch["attention_mask"].bool()
        values = torch.zeros(*ids.shape, self.num_tokens)
        for row, (sequence, there) in enumerate(zip(ids, mask)):
            tokens = sequence[there].tolist()
            self.make_room(len(tokens))
            self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
            self.read([0], [tokens], [0], everywhere=True)
            logits = np.ctypeslib.as_array(self.lib.llama_get_logits(self.context), (len(tokens), self.num_tokens))
            values[row, there] = torch.from_numpy(logits)
        return values, batch["predicted"]

    def continued(self, prompts: Sequence[Sequence[int]], most: int, stops: Sequence[int], choose: Choose) -> None:
        """So many at once as a context has room for."""
        done, longest = 0, max(map(len, prompts), default=0) + most
        count = max(1, CELLS // room_for(longest))
        while done < len(prompts):
            part = range(done, min(done + count, len(prompts)))
            try:
                self.make_room(longest, len(part))
            except BadInput:  # no memory for so many at once
                if count == 1:
                    raise
                count //= 2
                continue
            self.together([list(prompts[row]) for row in part], most, set(stops), part, choose)
            done = part.stop

    def together(
        self, prompts: list[list[int]], most: int, stops: set[int], rows: Sequence[int], choose: Choose
    ) -> None:
        """After each prompt, up to one of `stops`: one more token of every unfinished text in each batch. `rows`: what `choose`
        calls the texts."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        live, tokens, starts = list(range(len(prompts))), prompts, [0] * len(prompts)
        for count in range(most):
            places = self.read(live, tokens, starts, everywhere=False)
            logits = np.stack([self.logits_at(place) for place in places])
            found = choose(torch.from_numpy(logits), [rows[text] for text in live]).argmax(-1).tolist()
            going = [(text, token) for text, token in zip(live, found) if token not in stops]
            if not going:
                break
            live, tokens = [text for text, _ in going], [[token] for _, token in going]
            starts = [len(prompts[text]) + count for text in live]

    def logits_at(self, place: int) -> np.ndarray:
        """(V,) at a place of the last batch: memory of the library's."""
        return np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.context, place), (self.num_tokens,))

    def read(self, rows: list[int], tokens: list[list[int]], starts: list[int], everywhere: bool) -> list[int]:
        """Add tokens to these sequences, from these places on: where in the batch each one's last token stands. `everywhere`:
        what comes next is asked at each place, else at the last."""
        lib = self.lib
        batch = lib.llama_batch_init(sum(map(len, tokens)), 0, 1)
        batch.n_tokens, places = 0, list[int]()
        for row, sequence, start in zip(rows, tokens, starts):
            for place, token in enumerate(sequence, start):
                at = batch.n_tokens
                batch.token[at], batch.pos[at] = token, place
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, row
                batch.logits[at] = everywhere or place == start + len(sequence) - 1
                batch.n_tokens += 1
            places.append(batch.n_tokens - 1)
        try:
            self.decode(batch)
        finally:
            lib.llama_batch_free(batch)
        return places

    def decode(self, batch: Any) -> None:
        if code := self.lib.llama_decode(self.context, batch):
            raise BadInput(
                f"llama.cpp cannot compute a batch of {batch.n_tokens} tokens (code {code})", hint="shorter texts"
            )

    def make_room(self, length: int, sequences: int = 1) -> None:
        """A context of this many tokens or more for each of so many sequences, or more."""
        if self.context and self.room[0] >= length and self.room[1] >= sequences:
            return
        lib = self.lib
        if self.context:
            lib.llama_free(self.context)
        length = room_for(length)
        options, self.room = lib.llama_context_default_params(), (length, sequences)
        options.n_ctx = options.n_batch = length * sequences
        options.n_seq_max = sequences
        options.n_threads = options.n_threads_batch = torch.get_num_threads()
        options.no_perf = True
        if self.in_fp32:  # fused attention sums in half precision, whatever the cache holds: 1e-4 off, and 1e-7 without
            options.type_k = options.type_v = lib.GGML_TYPE_F32
            options.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = lib.llama_init_from_model(self.model, options)
        if not self.context:
            raise BadInput(f"llama.cpp has no memory for {length} tokens of {sequences} texts", hint="shorter texts")

    @property
    def in_fp32(self) -> bool:
        text = ctypes.create_string_buffer(64)
        self.lib.llama_model_desc(self.model, text, len(text))
        return b"F32" in text.value

    def tokens_of(self, text: str) -> list[int]:
        """What llama.cpp's own tokenizer makes of a text."""
        data = text.encode()
        room = (self.lib.llama_token * (len(data) + 8))()
        count = self.lib.llama_tokenize(self.vocabulary, data, len(data), room, len(room), True, True)
        return list(room[:count])


def room_for(length: int) -> int:
    """Tokens of a context for a text of this length."""
    return max(LEAST, 1 << max(0, length - 1).bit_length())


# --------------------------------------------------------------------------------------------------- making and opening


def make(model: Model, records: Records, choice: Choice, log: Log) -> GgufSession:
    tokenizer = tokenizer_of(model)
    place = TemporaryDirectory(prefix="onnuri-")
    path = Path(place.name) / "model.gguf"
    odd = gguf_file.write(model.net, tokenizer, path, choice.precision)
    if odd:
        log.warn(f"{len(odd)} matrices with columns that no block of 32 divides are in 16 bits: {', '.join(odd[:3])}")
    session = GgufSession(path, place)
    if gguf_file.split_name(tokenizer):
        compare_tokens(session, tokenizer, records, log)
    else:
        log.warn(gguf_file.UNNAMED)
    return session


def tokenizer_of(model: Model) -> Any:
    """The tokenizer beside the net, after it is known that there can be one."""
    from transformers import AutoTokenizer

    gguf_file.require_known(model.net)
    return AutoTokenizer.from_pretrained(model.files, local_files_only=True)


def compare_tokens(session: GgufSession, tokenizer: Any, records: Records, log: Log) -> None:
    """Warn where llama.cpp cuts a text otherwise than the model's own tokenizer, by which Onnuri goes."""
    texts = [value for record in records.some(COMPARED).list() for value in record.values() if isinstance(value, str)]
    unlike = [text for text in texts if session.tokens_of(text) != tokenizer(text).input_ids]
    if unlike:
        log.warn(
            f"llama.cpp cuts {len(unlike)} of {len(texts)} texts otherwise than the tokenizer, first {unlike[0][:40]!r}"
        )


def open_folder(folder: Path) -> GgufSession:
    return GgufSession(folder / ARTEFACT)


RUNTIME = Runtime("gguf", ARTEFACT, ("fp32", "fp16", "bf16", "int8", "int4"), range(0), make, open_folder)
