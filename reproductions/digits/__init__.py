"""Networks on the embedded digits: LeNet-5 in grey, and floored masters beside rounded ones."""
