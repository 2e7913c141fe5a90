"""The published MedMNIST recipe, as its authors' code has it, in plain PyTorch: what the ladder is measured against.

ResNet-18 with a 3x3 first layer (Yang et al. 2023, github.com/MedMNIST/experiments), Adam 1e-3, batch 128, no augmentation,
x in [-1,1], learning rate / 10 after half and three quarters of the epochs, the epoch with the best AUC on validation is kept.
The authors train 100 epochs; --epochs 20 is what two cores can do, and is said with the result.

    python tests/benchmarks/medmnist_recipe.py ham7_28.npz --seed 0 --out recipe_0.npz
"""
import argparse, json, time
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F
from sklearn.metrics import roc_auc_score

class Block(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        same = stride == 1 and n_in == n_out
        self.short = nn.Identity() if same else nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))
    def forward(self, x): return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.short(x))

def resnet18(n_in, n_out):
    stages = [(64,64,1), (64,64,1), (64,128,2), (128,128,1), (128,256,2), (256,256,1), (256,512,2), (512,512,1)]
    return nn.Sequential(nn.Conv2d(n_in, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
                         *[Block(*s) for s in stages], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, n_out))

def load(path, device):
    z = np.load(path)
    def split(k):
        x = torch.tensor(z[f'{k}_images']).to(device)
        x = x[:,None] if x.ndim == 3 else x.permute(0,3,1,2)
        return x, torch.tensor(z[f'{k}_labels'].astype(np.int64).ravel()).to(device)
    return {k: split(k) for k in ('train', 'val', 'test')}

def batch(x): return ((x/255 - .5)/.5).contiguous(memory_format=torch.channels_last)

def probs(model, x, cast):
    model.eval()
    with torch.no_grad(), cast(): return torch.cat([model(batch(b)).float().softmax(1) for b in x.split(256)]).cpu().numpy()

def main(a):
    device = torch.device(a.device)
    def cast(): return torch.autocast(device.type, torch.bfloat16, enabled=a.bf16)
    torch.manual_seed(a.seed)
    data = load(a.data, device)
    (x, y), (vx, vy) = data['train'], data['val']
    n = int(y.max()) + 1
    model = resnet18(x.shape[1], n).to(device, memory_format=torch.channels_last)
    opt = torch.optim.Adam(model.parameters(), lr=1e-3)
    sched = torch.optim.lr_scheduler.MultiStepLR(opt, [a.epochs//2, a.epochs*3//4], gamma=.1)
    best, log, start = (-1,), [], time.time()
    for epoch in range(a.epochs):
        model.train()
        for i in torch.randperm(len(x), device=device).split(128):
            with cast(): loss = F.cross_entropy(model(batch(x[i])).float(), y[i])
            opt.zero_grad(); loss.backward(); opt.step()
        sched.step()
        p = probs(model, vx, cast)
        auc, acc = roc_auc_score(np.eye(n)[vy.cpu()], p, average='macro'), (p.argmax(1) == vy.cpu().numpy()).mean()
        log.append(dict(epoch=epoch, loss=loss.item(), val_auc=auc, val_acc=acc, seconds=time.time()-start)); print(json.dumps(log[-1]), flush=True)
        if auc > best[0]: best = (auc, epoch, p, probs(model, data['test'][0], cast))
    np.savez(a.out, val=best[2], test=best[3], epoch=best[1], seconds=log[-1]['seconds'], log=json.dumps(log),
             settings=json.dumps(dict(vars(a), torch=torch.__version__, threads=torch.get_num_threads())))

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('data'); p.add_argument('--out', required=True); p.add_argument('--seed', type=int, default=0)
    p.add_argument('--epochs', type=int, default=100); p.add_argument('--bf16', action='store_true')
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    main(p.parse_args())
