"""The left atrium at 1.25 mm, one fixed split: 60 cases to train (6 of them watched), 20 to test, scored once on their own grids.

    MEDKIT_DATA=../shared/data python tests/benchmarks/left_atrium.py --out atrium

The split and the settings are fixed here; no epoch is chosen, the weights are those of the last step. LA2018 was cropped to the
atrium by those who shared it, so its scores cannot be compared with the Decathlon's heart, nor with the challenge's own."""
import argparse, json, time
from dataclasses import asdict
from pathlib import Path
import numpy as np
from medkit.core import run_record, save_json
from medkit.masks import evaluate_masks
from medkit.models import load_model, save_model
from medkit.crossval import score_cases
from medkit.segment import segmenter, volume_dls
from medkit.training import history, quiet
from medkit.volumes import open_volumes

def split(vs, seed=0):
    "Names of 54 training, 6 watched and 20 test cases"
    ids = [vs.cases[i].id for i in np.random.default_rng(seed).permutation(len(vs))]
    return [ids[:54], ids[54:60], ids[60:]]

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--out', default='atrium'); a.add_argument('--epochs', type=int, default=80); a.add_argument('--bs', type=int, default=2)
    a.add_argument('--lr', type=float, default=4e-3); a.add_argument('--pretrained'); a.add_argument('--seed', type=int, default=0)
    a = a.parse_args()
    vs = open_volumes('la2018')
    dls = volume_dls(vs, bs=a.bs, splits=split(vs), epochs=a.epochs, lr=a.lr)
    learn, t = segmenter(dls, a.pretrained, seed=a.seed, ema=True), time.perf_counter()
    learn.unfreeze()
    with quiet(learn): learn.fit_one_cycle(a.epochs, a.lr)
    seconds = time.perf_counter()-t
    out = Path(a.out)
    save_model(learn, out/'model', half=True)
    history(learn).to_csv(out/'curve.csv', index=False)
    t = time.perf_counter()
    r = evaluate_masks(score_cases(load_model(out/'model'), dls[2].dataset.items, {1: 'left atrium'}))
    save_json(r.to_dict() | dict(settings=vars(a), plan=asdict(dls.plan), seconds=round(seconds), seconds_to_predict=round(time.perf_counter()-t), record=run_record(device=dls.device, seed=a.seed)), out/'metrics.json')
    print(r, f'\ntrained in {seconds:.0f} s')

if __name__ == '__main__': main()
