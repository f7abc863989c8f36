"""Speed on a GPU, side by side, with nothing but PyTorch: `make bench-gpu`. Begin at `__main__.py`.

The networks of `llamavid/model` are the truth. `published.py` computes as the published code does; the
`fast_` files, encoder, decoder, context and language, compute the same function sooner.
No figure is written without its error against the truth in float32, on the same inputs, in the same run.
"""
