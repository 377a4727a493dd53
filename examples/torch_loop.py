"""The loop of PyTorch's first tutorial on handwritten digits, with one line changed: where `optim` comes from.

    python examples/torch_loop.py                       SGD with momentum, ten epochs
    python examples/torch_loop.py --optimizer Adam      or Adagrad

With `import torch.optim as optim` in the place of that line, the script prints the same losses.
"""

import argparse
import sys

try:
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
    from sklearn.datasets import load_digits
    from torch.utils.data import DataLoader, TensorDataset

    import funcopt.optim as optim
except ModuleNotFoundError as missing:
    sys.stderr.write(f'torch_loop: {missing}; install what the examples need: pip install "funcopt[examples]"\n')
    sys.exit(2)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(784, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x):
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        return self.fc2(x)


parser = argparse.ArgumentParser(prog="torch_loop.py", description=__doc__.split("\n")[0])
parser.add_argument("--optimizer", choices=("SGD", "Adam", "Adagrad"), default="SGD", help="(%(default)s)")
args = parser.parse_args()

digits = load_digits()  # 1,797 images of 8 x 8, ink from 0 to 16
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
images = F.interpolate(images, size=(28, 28), mode="bilinear", antialias=True)
labels = torch.tensor(digits.target)

torch.manual_seed(0)
trainset = TensorDataset(images[:1437], labels[:1437])
trainloader = DataLoader(trainset, batch_size=4, shuffle=True)

net = Net()
criterion = nn.CrossEntropyLoss()
if args.optimizer == "SGD":
    optimizer = optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
elif args.optimizer == "Adam":
    optimizer = optim.Adam(net.parameters(), lr=0.001)
else:
    optimizer = optim.Adagrad(net.parameters(), lr=0.01)

for epoch in range(10):  # loop over the dataset multiple times
    running_loss = 0.0
    for inputs, targets in trainloader:
        optimizer.zero_grad()

        outputs = net(inputs)
        loss = criterion(outputs, targets)
        loss.backward()
        optimizer.step()

        running_loss += loss.item()
    print(f"epoch {epoch + 1:2}  loss {running_loss / len(trainloader):.3f}")

with torch.no_grad():
    correct = (net(images[1437:]).argmax(1) == labels[1437:]).sum().item()
print(f"{correct} of {len(labels) - 1437} test images are recognised")
