"""Cutting a traced model into segments.

`exporting` traces a model, `functional` makes in-place operators functional while it does, `trace` is
what they give, `cutting` takes it apart, `splitting` puts segments together, `legal` lists the places.
"""
