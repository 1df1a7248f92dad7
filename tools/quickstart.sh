#!/usr/bin/env bash
# Run the whole pipeline on the built-in sample world, with the commands a user would type. All output goes to
# ./quickstart; running it again resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
out=quickstart
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # one thread for each of the two ranks

say() { printf '\n== %s\n' "$*"; }
run() { echo "\$ $*"; "$@"; }

say "1. A small world: real facts as a MediaWiki dump, Wikidata5M files and LAMA probes"
run python tools/sample_world/generate.py --out $out/world

say "2. Text and knowledge graph become webdataset shards"
run trelm prepare --source $out/world/wiki --wikidata5m $out/world/wikidata5m \
    --tokenizer train --vocab-size 6000 --unit sentence --max-length 64 --min-words 4 --out $out/dataset
run trelm verify $out/dataset

train() {
    run torchrun --standalone --nproc-per-node 2 -m trelm_ds pretrain --config trelm_ds/recipes/sizes/tiny.yaml \
        --config "trelm_ds/recipes/$1.yaml" --data $out/dataset --out "$out/$1"
    run trelm export "$out/$1" "$out/$1-model"
}

say "3. Pre-training twice, plain MLM and TRELM: two ranks, DeepSpeed ZeRO 1, MLflow"
train mlm
run trelm importance $out/dataset --model $out/mlm-model # which mentions matter to it (Eq. 1), for TRELM
train trelm

say "4. Plain Hugging Face folders, probed for facts"
for recipe in mlm trelm; do
    run trelm evaluate lama --model $out/$recipe-model --data $out/world/lama --out $out/$recipe-lama.json
done

say "5. Side by side: facts stated often, once, or only in the knowledge graph, and facts that were not trained"
run python tools/quickstart_report.py --folder $out

cat <<END

Done.
  loss curves      $out/trelm/loss.png, $out/mlm/loss.png
  probe tables     $out/trelm-lama.json, $out/mlm-lama.json (and .png)
  exported model   $out/trelm-model   (AutoModelForMaskedLM.from_pretrained)
  MLflow           .venv/bin/mlflow ui --backend-store-uri sqlite:///$out/mlflow.db
END
