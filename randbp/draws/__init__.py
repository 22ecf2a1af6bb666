"""Random numbers that can be drawn again: seeds of layers, steps and micro-batches, and draws made from them."""
