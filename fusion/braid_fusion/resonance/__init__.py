"""Resonance layers: prime amplitudes, quaternion attention, oscillators, coherence gate, composition and memory.

Each component has a file of its own; `core` puts them together in the fusion width, `layer` adds them to a model.
Beside them `lyapunov` and `stability` say how stable a generation is.
"""
