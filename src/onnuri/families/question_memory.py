"""What a net of transformers that reads one text and writes another says of the next token, keeping what it has read.

Any net with an encoder and a decoder: nothing but what the library calls their inputs and what it keeps of them is named. The
memory is what both have made: an encoder's states are turned into keys and values once, and stay.

1. A question that goes on after something was written is encoded for itself and stands beside what was read before (Izacard and
   Grave 2021, arXiv:2007.01282, fuse passages so). Where nothing more is asked, its entries of the batch have no places.
2. Places of the answer are counted from the longest of those in the memory: sequences that are to go on from it are of one length.

Letters: B records, S tokens of the question, T tokens of the answer, V tokens in the vocabulary.
"""

import inspect
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..family import Batch, Memory, Outputs, Session, on_any_runtime
from .next_token import cache_of

SOUND: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether a net goes on rightly from what its library keeps, as far as that was looked at."""


@on_any_runtime
def outputs(net: nn.Module, batch: Batch) -> Outputs:
    """The decoder's logits (B, T, V) and where they are asked for."""
    found = net(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        decoder_input_ids=batch["decoder_input_ids"],
        decoder_attention_mask=batch["decoder_attention_mask"],
        use_cache=False,
    )
    return found.logits, batch["predicted"]


def steps(net: nn.Module, batch: Batch, memory: Memory) -> tuple[Outputs, Memory]:
    """The memory: which places of the answer are there (B, T), which of the question (B, S), then keys and values (B, heads,
    places, width) of each layer in turn, those of the answer before those of the question. Nothing is kept of nets that would go
    on wrongly."""
    if isinstance(net, Session):
        return net.steps(batch, memory) if asks(batch) else asking_nothing(net, batch, memory)
    if not memory and not goes_on(net):
        return outputs(net, batch), ()
    return going_on(net, batch, memory)


def going_on(net: Any, batch: Batch, memory: Memory) -> tuple[Outputs, Memory]:
    """See `steps`."""
    from transformers import EncoderDecoderCache

    masks = [batch["decoder_attention_mask"], batch["attention_mask"]]
    if memory:
        masks = [torch.cat(pair, 1) for pair in zip(memory, masks)]
    kept = memory[2:]
    past = EncoderDecoderCache(cache_of(kept[: len(kept) // 2]), cache_of(kept[len(kept) // 2 :]))
    past.is_updated = dict.fromkeys(past.is_updated, not asks(batch))
    found = net(
        encoder_outputs=encoded(net, batch),
        attention_mask=masks[1],
        decoder_input_ids=batch["decoder_input_ids"],
        decoder_attention_mask=masks[0],
        past_key_values=past,
        use_cache=True,
    )
    past = found.past_key_values
    layers = [*past.self_attention_cache.layers, *past.cross_attention_cache.layers]
    return (found.logits, batch["predicted"]), [
        *masks,
        *(part for layer in layers for part in (layer.keys, layer.values)),
    ]


def asking_nothing(net: Session, batch: Batch, memory: Memory) -> tuple[Outputs, Memory]:
    """`steps` of a graph, which takes no tensors without a place: one is asked that is not there, and forgotten again."""
    nothing = torch.zeros(len(batch["input_ids"]), 1, dtype=torch.int64)
    found, grown = net.steps(batch | {"input_ids": nothing, "attention_mask": nothing}, memory)
    there, seen, *kept = grown
    half, places = len(kept) // 2, seen.shape[1] - 1
    return found, [there, seen[:, :places], *kept[:half], *(one[:, :, :places] for one in kept[half:])]


def asks(batch: Batch) -> bool:
    """Whether there is a question to read."""
    return batch["input_ids"].shape[1] > 0


def encoded(net: Any, batch: Batch) -> Any:
    """What the encoder makes of the question, in the form that all decoders take: those of experts ask how these were chosen."""
    from transformers.modeling_outputs import MoEModelOutput

    if asks(batch):
        there = batch["attention_mask"]
        there = there | ~there.any(1, keepdim=True)  # of nothing at all there would be no mean
        states = net.get_encoder()(input_ids=batch["input_ids"], attention_mask=there)[0]
    else:
        width = net.get_encoder().config.get_text_config().hidden_size
        states = torch.zeros(batch["input_ids"].shape[0], 0, width, dtype=net.dtype, device=net.device)
    return MoEModelOutput(last_hidden_state=states)


# --------------------------------------------------------------------------------------------- what may be kept


def goes_on(net: nn.Module) -> bool:
    """Whether a net that goes on from its memory says what it says when it reads all at once. Seen on a few tokens, once: of some
    the library keeps too little, or forgets what comes later when it begins to keep."""
    if net not in SOUND:
        SOUND[net] = takes_memory(net) and agrees(net)
    return SOUND[net]


def takes_memory(net: nn.Module) -> bool:
    return {"past_key_values", "encoder_outputs"} <= inspect.signature(net.forward).parameters.keys()


@torch.no_grad()
def agrees(net: Any) -> bool:
    """Three tokens at once, against two and then the third; and the first of them with others behind it."""
    whole, begun, last = (probe(net, part) for part in (slice(0, 3), slice(0, 2), slice(2, 3)))
    training = net.training
    try:
        wanted = outputs(net.eval(), whole)[0]
        (first, _), memory = going_on(net, begun, ())
        nothing = {name: last[name][:, :0] for name in ("input_ids", "attention_mask")}
        (second, _), _ = going_on(net, last | nothing, memory)
    except Exception:  # each architecture has its own way to refuse
        return False
    finally:
        net.train(training)
    rounding = max(1e-4, 4 * torch.finfo(wanted.dtype).eps)
    return close(torch.cat([first, second], 1), wanted, rounding)


def probe(net: Any, part: slice) -> Batch:
    """The first three tokens that do not pad, as the question of an answer that begins with them."""
    ids = torch.tensor([[number for number in range(4) if number != net.config.pad_token_id][:3]], device=net.device)
    there = torch.ones_like(ids)
    answer = {"decoder_input_ids": ids[:, part], "decoder_attention_mask": there[:, part]}
    return {"input_ids": ids, "attention_mask": there, "predicted": there[:, part].bool(), **answer}


def close(one: Tensor, other: Tensor, rounding: float) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= rounding * other.abs().max())
