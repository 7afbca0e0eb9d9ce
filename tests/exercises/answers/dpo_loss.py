import numpy as np


def dpo(chosen, rejected, reference_chosen, reference_rejected, beta):
    z = beta * (chosen - reference_chosen - rejected + reference_rejected)
    loss = np.maximum(-z, 0) + np.log1p(np.exp(-abs(z)))
    slope = np.where(z > 0, -np.exp(-abs(z)) / (1 + np.exp(-abs(z))), -1 / (1 + np.exp(-abs(z))))
    dchosen = slope * beta / len(z)
    return loss.mean(), dchosen, -dchosen
