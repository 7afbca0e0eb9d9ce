def merges(words, count):
    sequences = [([bytes([byte]) for byte in word], n) for word, n in words.items()]
    pairs = []
    while len(pairs) < count:
        counts = {}
        for tokens, n in sequences:
            for i in range(len(tokens) - 1):
                pair = tokens[i], tokens[i + 1]
                counts[pair] = counts.get(pair, 0) + n
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], pair))
        pairs.append(best)
        for tokens, _ in sequences:
            i = 0
            while i < len(tokens) - 1:
                if (tokens[i], tokens[i + 1]) == best:
                    tokens[i : i + 2] = [best[0] + best[1]]
                i += 1
    return pairs
