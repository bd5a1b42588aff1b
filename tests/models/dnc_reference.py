"""The Differentiable Neural Computer of one row, written from Graves et al. 2016 (Nature 538, Methods),
formula by formula with loops over slots and heads: the slow twin of `DNCCell`.

Numbers are floats, vectors are lists; `simple_step` is the twin of the simplified memory, from the formulas
of its docstring.
"""

import math

EPSILON = 1e-6  # in the cosine: |v|² + ε for |v|²


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def oneplus(x):
    return 1 + math.log(1 + math.exp(x))


def softmax(values):
    top = max(values)
    raised = [math.exp(v - top) for v in values]
    return [r / sum(raised) for r in raised]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def affine(matrix, bias, x):
    return [dot(line, x) + b for line, b in zip(matrix, bias, strict=True)]


def layer_norm(x, gain, bias):
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    return [(v - mean) / math.sqrt(variance + 1e-5) * g + b for v, g, b in zip(x, gain, bias, strict=True)]


def lstm(weights, x, hidden, cell):
    """One head; gates in the order input, forget, output, candidate."""
    size = len(hidden)
    driven = affine(weights["controller.map.weight_input"], weights["controller.map.bias"], x)
    gates = [
        d + dot(line, hidden)
        for d, line in zip(driven, weights["controller.map.weight_state"][0], strict=True)
    ]
    i, f, o, u = (gates[k * size : (k + 1) * size] for k in range(4))
    cell = [sigmoid(f[k]) * cell[k] + sigmoid(i[k]) * math.tanh(u[k]) for k in range(size)]
    return [sigmoid(o[k]) * math.tanh(cell[k]) for k in range(size)], cell


def content(memory, key, strength):
    """C(M, k, β)."""
    lengths = [math.sqrt((dot(key, key) + EPSILON) * (dot(slot, slot) + EPSILON)) for slot in memory]
    return softmax([strength * dot(key, slot) / length for slot, length in zip(memory, lengths, strict=True)])


def allocation(usage):
    free = sorted(range(len(usage)), key=lambda n: usage[n])
    a = [0.0] * len(usage)
    for j, slot in enumerate(free):
        a[slot] = 1 - usage[slot]
        for i in range(j):
            a[slot] *= usage[free[i]]
    return a


def written(memory, w, erase, vector):
    return [
        [m * (1 - w[n] * erase[k]) + w[n] * vector[k] for k, m in enumerate(slot)]
        for n, slot in enumerate(memory)
    ]


def read(memory, w):
    return [sum(w[n] * memory[n][k] for n in range(len(memory))) for k in range(len(memory[0]))]


def row_state(state):
    """The state of one row as plain lists, from the tensors of a `DNCState` of one row."""
    hidden, cell = (part[0].tolist() for part in state.controller)
    external = {name: part[0].tolist() for name, part in state.external._asdict().items()}
    return {"hidden": hidden, "cell": cell, "reads": state.reads[0].tolist(), **external}


def take(emitted, *sizes):
    """Consecutive pieces of a list."""
    pieces, start = [], 0
    for size in sizes:
        pieces.append(emitted[start : start + size])
        start += size
    assert start == len(emitted)
    return pieces


def vectors(flat, width):
    return [flat[k : k + width] for k in range(0, len(flat), width)]


def step(weights, x, state):
    """One step: y and the next state."""
    N, W, R = len(state["memory"]), len(state["memory"][0]), len(state["reads"])
    seen = list(x) + [number for r in state["reads"] for number in r]
    h, cell = lstm(weights, seen, state["hidden"], state["cell"])

    emitted = affine(weights["memory.interface.weight"], weights["memory.interface.bias"], h)
    sizes = [R * W, W, W, W, R, 1, 1, R, 1, 3 * R]
    pieces = take(emitted, *sizes)
    read_keys, write_key, v, erase, free, g_a, g_w, read_strengths, write_strength, modes = pieces
    read_keys, modes = vectors(read_keys, W), [softmax(m) for m in vectors(modes, 3)]
    erase, free = [sigmoid(e) for e in erase], [sigmoid(f) for f in free]
    g_a, g_w = sigmoid(g_a[0]), sigmoid(g_w[0])
    read_strengths, write_strength = [oneplus(s) for s in read_strengths], oneplus(write_strength[0])

    usage = []
    for n in range(N):
        retained = 1.0
        for i in range(R):
            retained *= 1 - free[i] * state["read_weights"][i][n]
        u, w = state["usage"][n], state["write_weights"][n]
        usage.append((u + w - u * w) * retained)
    a, c = allocation(usage), content(state["memory"], write_key, write_strength)
    w = [g_w * (g_a * a[n] + (1 - g_a) * c[n]) for n in range(N)]
    memory = written(state["memory"], w, erase, v)

    link = [[0.0] * N for _ in range(N)]
    for i in range(N):
        for j in range(N):
            if i != j:
                link[i][j] = (1 - w[i] - w[j]) * state["link"][i][j] + w[i] * state["precedence"][j]
    precedence = [(1 - sum(w)) * state["precedence"][n] + w[n] for n in range(N)]

    read_weights = []
    for i in range(R):
        before = state["read_weights"][i]
        forward = [sum(link[n][m] * before[m] for m in range(N)) for n in range(N)]
        backward = [sum(link[m][n] * before[m] for m in range(N)) for n in range(N)]
        c = content(memory, read_keys[i], read_strengths[i])
        p = modes[i]
        read_weights.append([p[0] * backward[n] + p[1] * c[n] + p[2] * forward[n] for n in range(N)])
    reads = [read(memory, weight) for weight in read_weights]
    said = h + [number for r in reads for number in r]
    y = [dot(line, said) for line in weights["output.weight"]]
    return y, {
        "hidden": h,
        "cell": cell,
        "reads": reads,
        "memory": memory,
        "usage": usage,
        "precedence": precedence,
        "link": link,
        "write_weights": w,
        "read_weights": read_weights,
    }


def simple_step(weights, x, state):
    """One step with the simplified memory: y and the next state."""
    W, R = len(state["memory"][0]), len(state["reads"])

    def norm(values, name):
        return layer_norm(values, weights[f"{name}.weight"], weights[f"{name}.bias"])

    seen = norm(list(x) + [number for r in state["reads"] for number in r], "input_norm")
    hidden, cell = lstm(weights, seen, state["hidden"], state["cell"])
    h = norm(hidden, "hidden_norm")
    emitted = affine(weights["memory.interface.weight"], weights["memory.interface.bias"], h)
    read_keys, write_key, v, erase, gate = take(emitted, R * W, W, W, W, 1)

    def norm_of_slot(slot):  # no bias
        return layer_norm(slot, weights["memory.memory_norm.weight"], [0.0] * W)

    def similar(memory, key):
        return softmax([dot(key, norm_of_slot(slot)) for slot in memory])

    w = [sigmoid(gate[0]) * s for s in similar(state["memory"], norm(write_key, "memory.write_key_norm"))]
    memory = written(state["memory"], w, [sigmoid(e) for e in erase], [math.tanh(t) for t in v])
    keys = [norm(key, "memory.read_key_norm") for key in vectors(read_keys, W)]
    reads = [read(memory, similar(memory, key)) for key in keys]
    said = norm(h + [number for r in reads for number in r], "output_norm")
    y = [dot(line, said) for line in weights["output.weight"]]
    return y, {"hidden": hidden, "cell": cell, "reads": reads, "memory": memory}
