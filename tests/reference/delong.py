"""The variance of a difference of two AUCs (DeLong, DeLong and Clarke-Pearson 1988), by loops over pairs of rows.

    psi(x, y) = 1 if x > y, 1/2 if x = y, 0 if x < y        of a click's score x and another row's score y
    AUC = mean over all pairs of psi
    V10_i = mean over the others j of psi(x_i, y_j)         V01_j = mean over the clicks i of psi(x_i, y_j)
    S10, S01 = sample covariances of the models' V10 over the m clicks, of their V01 over the n others
    var(AUC_a - AUC_b) = (S10_aa + S10_bb - 2 S10_ab) / m + (S01_aa + S01_bb - 2 S01_ab) / n

Imports nothing of the package.
"""


def difference(label, ours, theirs):
    """Of two models' scores of the same rows: (AUC ours - AUC theirs, its variance), as Python floats."""
    clicks = [i for i, y in enumerate(label) if y == 1]
    others = [i for i, y in enumerate(label) if y == 0]
    auc, of_clicks, of_others = [], [], []
    for scores in (ours, theirs):
        won = [[psi(float(scores[i]), float(scores[j])) for j in others] for i in clicks]
        auc.append(sum(sum(row) for row in won) / (len(clicks) * len(others)))
        of_clicks.append([sum(row) / len(others) for row in won])
        of_others.append([sum(row[j] for row in won) / len(clicks) for j in range(len(others))])
    variance = 0.0
    for parts in (of_clicks, of_others):
        a, b = parts
        variance += (covariance(a, a) + covariance(b, b) - 2 * covariance(a, b)) / len(a)
    return auc[0] - auc[1], variance


def psi(x, y):
    if x == y:
        return 0.5
    return 1.0 if x > y else 0.0


def covariance(a, b):
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    return sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b)) / (len(a) - 1)
