"The `medkit` command as a student types it"
import json, os, signal, subprocess, sys, time
import nibabel as nib, numpy as np, pandas as pd, pytest
from PIL import Image
from scipy.ndimage import label
from medkit.cli import main
from medkit.core import cache_dir
from medkit.masks import evaluate_folder
from medkit.models import load_model
from medkit.phantom import make_sample
from medkit.volumes import read_volume
from conftest import ROOT

RUN = 'import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from medkit.cli import main; sys.exit(main())'

def start(*argv, cwd, **more):
    "The command in a process of its own"
    return subprocess.Popen([sys.executable, '-c', RUN, *map(str, argv)], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=os.environ | dict(PYTHONPATH=str(ROOT), PYTHONUNBUFFERED='1', COLUMNS='200', HF_HUB_OFFLINE='1'), **more)

@pytest.fixture
def medkit(capsys, tmp_path, monkeypatch):
    "Run a command in this process, in an empty folder: (exit status, output, error text)"
    (tmp_path/'cwd').mkdir(); monkeypatch.chdir(tmp_path/'cwd')
    monkeypatch.setenv('COLUMNS', '200')
    def run(*argv):
        capsys.readouterr()
        try: status = main(list(map(str, argv)))
        except SystemExit as e: status = e.code
        o = capsys.readouterr()
        assert 'Traceback' not in o.err
        return status, o.out, o.err
    yield run
    assert not list((tmp_path/'cwd').iterdir()), 'something was written into the working folder'

def refused(result, *says):
    "A mistake: not zero, nothing but one sentence"
    status, out, err = result
    assert status == 2, result
    assert all(s in err for s in says), err
    assert err.startswith('medkit: ') and err.count('\n') == 1 or 'usage: medkit' in err, err

@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "A data folder: organ_a with every second voxel, and 300 lesions; read only"
    d = tmp_path_factory.mktemp('data')
    make_sample('organ_a', d/'organ_a', n=6); make_sample('lesions', d/'lesions', n=300)
    for f in d.rglob('*.nii.gz'):
        i = nib.load(f)
        nib.save(nib.Nifti1Image(np.asarray(i.dataobj)[::2,::2,::2], i.affine @ np.diag([2,2,2,1.])), f)
    return d

# ---------- words

@pytest.mark.parametrize('command', 'doctor data demo plan train predict evaluate audit test'.split())
def test_help_has_an_example(medkit, command):
    status, out, _ = medkit(command, '--help')
    assert status == 0 and f'example:\n  medkit {command}' in out

def test_as_a_process(tmp_path):
    for argv, status in ((['--version'], 0), (['data', 'where'], 0), ([], 2), (['fly'], 2), (['data', 'card', 'hipocampus'], 2), (['test'], 2)):
        p = start(*argv, cwd=tmp_path)
        out, err = p.communicate(timeout=100)
        assert p.returncode == status and 'Traceback' not in err and bool(err) == bool(status), (argv, err)
    assert "is not in a copy of medkit's repository" in err and err.count('\n') == 1
    assert not list(tmp_path.iterdir())

# ---------- data

def test_data(medkit, small, monkeypatch):
    monkeypatch.setenv('MEDKIT_DATA', str(small))
    status, out, _ = medkit('data', 'list')
    assert status == 0 and all(n in out for n in ('dermamnist', 'hippocampus', 'heart', 'organ_a'))
    assert 'dermamnist' not in medkit('data', 'list', 'hippocampus')[1]
    assert str(small) == medkit('data', 'where')[1].splitlines()[0] and str(cache_dir()) in medkit('data', 'where')[1]
    assert medkit('data', 'fetch', 'organ_a')[:2] == (0, f'{small/"organ_a"}\n')
    status, out, _ = medkit('data', 'verify', 'organ_a')
    assert status in (0, 1) and str(small/'organ_a') in out
    assert 'non-commercial' in medkit('data', 'card', 'dermamnist')[1].lower() or 'BY-NC' in medkit('data', 'card', 'dermamnist')[1]

def test_data_fetch_makes_a_sample_in_the_cache(medkit):
    status, out, _ = medkit('data', 'fetch', 'organ_b')
    assert status == 0 and str(cache_dir()) in out and (cache_dir()/'data'/'organ_b'/'dataset.json').exists()

def test_data_mistakes(medkit):
    refused(medkit('data', 'fetch', 'hipocampus'), 'did you mean hippocampus')
    refused(medkit('data', 'fetch'), 'needs the name of a set')
    assert medkit('data', 'verify', 'dermamnist')[:2] == (1, 'dermamnist: not on this computer\n')
    refused(medkit('data', 'fetch', 'dermamnist', '--size', '99'), '99')
    refused(medkit('data', 'burn', 'organ_a'), 'invalid choice')
    refused(medkit('data', 'list', 'zzz'), "No set has 'zzz'", 'shows them all')

# ---------- train, predict, evaluate

def test_volumes_from_training_to_scores(medkit, small, tmp_path):
    m, out = tmp_path/'run.v1', tmp_path/'masks'
    status, said, err = medkit('train', 'organ_a', '--data', small, '--epochs', '1', '--n-labelled', '3', '--out', m)
    assert status == 0, err
    assert '3 / 1 / 1 cases' in said and f'Model: {m/"model.safetensors"}' in said and 'dice' in said.lower()
    assert {'model.safetensors', 'model.json', 'model_card.md', 'report.html', 'report.md', 'report_files', 'metrics.json', 'run.json'} == {p.name for p in m.iterdir()}
    run, model = json.loads((m/'run.json').read_text()), json.loads((m/'model.json').read_text())
    assert (run['set'], run['epochs'], run['source'], run['plan']) == ('organ_a', 1, 'organ_a', model['plan']) and run['seed'] == 42 and len(model['history']) == 1
    images, truth = small/'organ_a'/'imagesTr', small/'organ_a'/'labelsTr'
    status, said, _ = medkit('predict', m/'model', images, '--out', out)
    assert status == 0 and said.split() == [str(out/f.name) for f in sorted(images.iterdir())]
    for f in images.iterdir(): assert np.array_equal(nib.load(out/f.name).affine, nib.load(f).affine)
    status, said, _ = medkit('evaluate', out, truth, '--out', tmp_path/'scores')
    assert status == 0
    here, want = json.loads((tmp_path/'scores'/'metrics.json').read_text()), evaluate_folder(out, truth)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/'scores'/'cases.csv')[['dice']], want.per_case[['dice']].reset_index(drop=True))
    assert [r['dice'] for r in here['per_case']] == pytest.approx([None if np.isnan(d) else d for d in want.per_case.dice]) and str(want) in said
    one = next(images.iterdir())
    assert medkit('evaluate', truth/one.name, truth/one.name)[0] == 0
    # the just trained model is where the next begins, and the same seed does the same
    status, said, _ = medkit('train', small/'organ_a', '--epochs', '1', '--pretrained', m/'model.safetensors', '--out', tmp_path/'next')
    assert status == 0 and 'tensors reused' in said

def test_packaged_model_on_a_file_and_a_folder(medkit, small, tmp_path):
    images = small/'organ_a'/'imagesTr'
    one = sorted(images.iterdir())[0]
    status, said, _ = medkit('predict', 'hippocampus', one, '--out', tmp_path/'a')
    assert (status, said) == (0, f'{tmp_path/"a"/one.name}\n')
    assert medkit('predict', 'hippocampus', images, '--out', tmp_path/'b')[0] == 0
    assert np.array_equal(np.asarray(nib.load(tmp_path/'a'/one.name).dataobj), np.asarray(nib.load(tmp_path/'b'/one.name).dataobj))
    assert len(list((tmp_path/'b').iterdir())) == 6

def test_plan(medkit, small):
    status, said, _ = medkit('plan', 'organ_a', '--data', small)
    assert status == 0 and {'spacing', 'patch', 'batch'} <= {line.split()[0] for line in said.splitlines()}
    for spacing, shown in (('3', '3 x 3 x 3 mm'), ('2,2,4', '2 x 2 x 4 mm')): assert shown in medkit('plan', small/'organ_a', '--spacing', spacing, '--memory', '1GB')[1]
    refused(medkit('plan', small/'organ_a', '--spacing', 'fine'), 'spacing', 'positive number')
    refused(medkit('plan', small/'organ_a', '--spacing', '1,2'), 'spacing')
    refused(medkit('plan', small/'organ_a', '--memory', 'much'), 'memory')
    refused(medkit('plan', 'lesions', '--data', small), 'is a set of pictures')
    refused(medkit('plan', 'hipocampus'), 'did you mean hippocampus')

def test_predict_options(medkit, small, tmp_path):
    scan = sorted((small/'organ_a'/'imagesTr').iterdir())[0]
    assert medkit('predict', 'hippocampus', scan, '--largest', '--out', tmp_path/'a')[0] == 0
    y = np.asarray(nib.load(tmp_path/'a'/scan.name).dataobj)
    assert all(label(y==l, np.ones((3,3,3)))[1] <= 1 for l in (1,2)) and y.any()
    if not load_model('hippocampus').info.get('mirror'): refused(medkit('predict', 'hippocampus', scan, '--mirror', '--out', tmp_path/'b'), 'met no mirrored images')

def test_a_dicom_series_is_one_case(medkit, small, tmp_path, monkeypatch):
    folder = tmp_path/'series.1'; folder.mkdir(); (folder/'a.dcm').write_bytes(b'\0'*128 + b'DICM' + b'\0'*64)
    refused(medkit('predict', 'hippocampus', folder, '--out', tmp_path/'out'), 'series.1')          # read as DICOM, which this one is in name only
    from medkit import predict as p
    scan = sorted((small/'organ_a'/'imagesTr').iterdir())[0]
    monkeypatch.setattr(p, 'read_volume', lambda path, *args: read_volume(scan, *args))
    assert medkit('predict', 'hippocampus', folder, '--out', tmp_path/'out')[1] == f'{tmp_path/"out"/"series.1.nii.gz"}\n'
    assert nib.load(tmp_path/'out'/'series.1.nii.gz').shape == nib.load(scan).shape

def test_pictures_from_training_to_labels(medkit, small, tmp_path):
    m, out = tmp_path/'model-1.5', tmp_path/'labels'
    status, said, err = medkit('train', 'lesions', '--data', small, '--arch', 'simple_cnn', '--epochs', '1', '--out', m)
    assert status == 0, err
    assert (m/'model.safetensors').exists() and (m/'report.html').exists()
    (tmp_path/'pics').mkdir()
    with np.load(small/'lesions'/'lesions.npz') as z:
        for i in range(3): Image.fromarray(z['test_images'][i]).save(tmp_path/'pics'/f'{i}.png')
    for model in (m/'model', m/'model.safetensors'):
        status, said, err = medkit('predict', model, tmp_path/'pics', '--out', out)
        assert status == 0 and said == f'{out/"predictions.csv"}\n', err
    table = pd.read_csv(out/'predictions.csv')
    assert len(table) == 3 and np.allclose(table.drop(columns=['file','label']).sum(1), 1, atol=1e-4)
    # a picture for a segmenter, a volume for a classifier
    refused(medkit('predict', 'hippocampus', tmp_path/'pics'/'0.png', '--out', out), '0.png', 'cannot be read')
    refused(medkit('predict', m/'model', tmp_path/'pics', '--largest', '--out', out), 'are for volumes')
    refused(medkit('train', 'lesions', '--data', small, '--spacing', '1', '--out', tmp_path/'no'), 'are for volumes')
    status, _, err = medkit('predict', m/'model', next((small/'organ_a'/'imagesTr').iterdir()), '--out', out)
    assert status == 2, err
    (m/'model.json').write_text('{"kind"')
    refused(medkit('predict', m/'model', tmp_path/'pics', '--out', out), 'copy both again')

def test_mistakes(medkit, small, tmp_path):
    a_file, scan = tmp_path/'file.txt', next((small/'organ_a'/'imagesTr').iterdir())
    a_file.write_text('here first'); empty = tmp_path/'empty'; empty.mkdir(); out = tmp_path/'out'
    refused(medkit('train', 'hipocampus', '--out', out), 'did you mean hippocampus')
    refused(medkit('train', empty, '--out', out), str(empty))
    refused(medkit('train', 'organ_a', '--epochs', '0', '--out', out), 'no whole number above zero')
    refused(medkit('train', 'organ_a', '--seed', '-1', '--out', out), '-1')
    refused(medkit('train', 'organ_a', '--n-labelled', 'few', '--out', out), 'few')
    refused(medkit('train', 'organ_a'), '--out')
    refused(medkit('train', 'organ_a', '--data', tmp_path/'nowhere', '--out', out), 'nowhere is no folder')
    refused(medkit('train', 'organ_a', '--data', small, '--arch', 'resnet18', '--out', out), '--arch is for pictures')
    refused(medkit('train', 'organ_a', '--data', small, '--n-labelled', '40', '--out', out), 'choose 1 to 4')
    refused(medkit('train', 'organ_a', '--data', small, '--pretrained', 'hart', '--out', out), "Unknown model 'hart'")
    refused(medkit('train', 'lesions', '--data', small, '--pretrained', 'hippocampus', '--out', out), 'are for volumes')
    refused(medkit('train', 'lesions', '--data', small, '--arch', 'resnet81', '--out', out), 'did you mean')
    for o in (a_file, a_file/'below'):
        for argv in (('train', 'organ_a', '--data', small), ('predict', 'hippocampus', scan), ('evaluate', scan.parent, scan.parent), ('demo',)):
            refused(medkit(*argv, '--out', o), f'{a_file} is a file')
    refused(medkit('demo', '--data', tmp_path/'nowhere', '--out', out), 'nowhere is no folder')
    refused(medkit('predict', 'hipocampus', scan, '--out', out), 'Unknown model')
    for model in ('.', '', tmp_path, tmp_path/'gone.safetensors', 'x.pth'): assert medkit('predict', model, scan, '--out', out)[0] == 2, model
    refused(medkit('predict', 'hippocampus', tmp_path/'gone.nii.gz', '--out', out), 'gone.nii.gz does not exist')
    refused(medkit('predict', 'hippocampus', empty, '--out', out), 'holds no .nii')
    refused(medkit('predict', 'hippocampus', a_file, '--out', out), 'file.txt cannot be read')
    refused(medkit('predict', 'hippocampus', scan, '--out', scan.parent), 'would overwrite')
    refused(medkit('evaluate', tmp_path/'gone', scan.parent), 'gone')
    refused(medkit('evaluate', empty, scan.parent), 'empty')
    assert a_file.read_text() == 'here first' and not out.exists() and not list(empty.iterdir()) and nib.load(scan).get_fdata().std() > 2

@pytest.mark.skipif(os.name=='nt', reason='Windows sends Ctrl-C to whole process groups')
def test_ctrl_c_keeps_the_last_epoch(small, tmp_path):
    p = start('train', small/'organ_a', '--epochs', '5000', '--n-labelled', '2', '--out', tmp_path/'out', cwd=tmp_path)
    models = cache_dir()/'learners'/'organ_a'/'models'
    epochs = set()
    try:
        while p.poll() is None and len(epochs) < 3:   # each epoch moves a new file there
            epochs |= {f.stat().st_mtime_ns for f in models.glob('last-*.safetensors')}
            time.sleep(.05)
        for press in range(4):                        # once in some twenty times one got lost, perhaps in a library's bare `except:`; people press again
            p.send_signal(signal.SIGINT)
            try: out, err = p.communicate(timeout=30); break
            except subprocess.TimeoutExpired: pass
    finally: p.kill()
    assert p.returncode == 130 and err.strip().splitlines()[-1] == 'medkit: interrupted' and 'Traceback' not in err, err
    last, = models.iterdir()                          # one file, whole
    assert 'of 5000 epochs' in out and str(last) in out and (tmp_path/'out'/'model.safetensors').exists() and 'Model of the last whole epoch' in out
