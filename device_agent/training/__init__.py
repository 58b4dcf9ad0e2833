"""The device's computations: data, head and tail, and the packing of what crosses a cut."""
