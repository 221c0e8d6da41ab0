#!/usr/bin/env bash
# Train the wide toy model from scratch: data, stage 1 on stills and on clips, stages 2 and 3, stage 3 on long clips.
#
#   bash training/toy/train.sh                     # two CPU cores, about a day
#   DEVICE=cuda bash training/toy/train.sh         # one GPU (not measured)
#   ONLY=stills bash training/toy/train.sh         # one part: data stills clips speech router long assemble
#   QUICK=1 OUT=/tmp/toy bash training/toy/train.sh  # a few steps of every part, to test the script
#
# Finished parts are skipped and interrupted ones resume from their last checkpoint (every 5 minutes). The length of a
# part is a number of samples, which may be changed before a restart. New data is used from the next start on.
# START=FOLDER initializes the first part that runs from the weights in FOLDER, such as `final` of another run.
set -euo pipefail
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-python}
OUT=${OUT:-runs/toy_wide}
DEVICE=${DEVICE:-cpu}
ONLY=${ONLY:-all}
BASE=${BASE:-bya_core/toy/weights}           # VAE, face, speech and voice-face networks
if [ "$DEVICE" = cuda ]; then
  PROCESSES=${PROCESSES:-1}                  # training processes
  DATA_PROCESSES=${DATA_PROCESSES:-0}        # drawing processes; 0 = one per core
  BATCH=${BATCH:-1024}                       # stills per step
  OPTIONS=${OPTIONS:-"--mixed-precision bf16 --compile --in-memory --batched-random"}
else
  PROCESSES=${PROCESSES:-2}
  DATA_PROCESSES=${DATA_PROCESSES:-2}
  BATCH=${BATCH:-128}
  OPTIONS=${OPTIONS:-"--mixed-precision bf16-weights --threads 1"}
fi
if [ -n "${QUICK:-}" ]; then
  BATCH=16 CLIPS_1=16 CLIPS_17=16 CLIPS_49=8 PER_FILE="--per-file 8"
  SAMPLES_STILLS=48 SAMPLES_CLIPS=48 SAMPLES_SPEECH=48 SAMPLES_ROUTER=48 SAMPLES_LONG=48
fi

CLIPS_1=${CLIPS_1:-98304}
CLIPS_17=${CLIPS_17:-16384}
CLIPS_49=${CLIPS_49:-2048}
PER_FILE=${PER_FILE:-}
# in stills; a clip of 17 frames counts as 5, one of 49 frames as 13
SAMPLES_STILLS=${SAMPLES_STILLS:-1600000}
SAMPLES_CLIPS=${SAMPLES_CLIPS:-1200000}
SAMPLES_SPEECH=${SAMPLES_SPEECH:-800000}
SAMPLES_ROUTER=${SAMPLES_ROUTER:-1400000}
SAMPLES_LONG=${SAMPLES_LONG:-1000000}

export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1
selected() { [ "$ONLY" = all ] || [ "$ONLY" = "$1" ]; }

draw() {  # folder, frames, clips, first seed, further options
  # shellcheck disable=SC2086
  "$PYTHON" -m training.toy.clips --output "$OUT/data/$1" --frames "$2" --clips "$3" --seed "$4" --encoders "$BASE" \
    --processes "$DATA_PROCESSES" --device "$DEVICE" --describe-motion --max-words 80 --eye-emphasis 0.5 "${@:5}" $PER_FILE
}

train() {  # name, stage, recipe, samples, seed, initial weights ("" = none), fractions of the lengths
  selected "$1" || return 0
  [ -d "$OUT/$1/final" ] && return 0
  local run=("$PYTHON" training/run_stage.py) init=()
  if [ "$PROCESSES" -gt 1 ]; then
    run=("$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$PROCESSES" training/run_stage.py)
  fi
  if [ -n "${START:-}" ]; then
    init=(--init "$START")
    START=""
  elif [ -n "$6" ]; then
    init=(--init "$OUT/$6/final")
  fi
  # shellcheck disable=SC2086
  "${run[@]}" --stage "$2" --recipe "$3" --data "$OUT/data" --output "$OUT/$1" --steps $(($4 / BATCH)) \
    --batch-size "$BATCH" --seed "$5" "${init[@]}" --length-fractions $7 $OPTIONS --report-to \
    --allow-change data steps
}

if selected data; then
  draw stills 1 "$CLIPS_1" 10000000 --fractions 0.12 0.40 0.24 0.24
  draw clips 17 "$CLIPS_17" 20000000 --fractions 0.10 0.50 0.22 0.18 --random-first-mouths 0.25
  draw long 49 "$CLIPS_49" 30000000 --fractions 0.10 0.50 0.22 0.18 --random-first-mouths 0.25 --per-file 32 \
    --vae-batch 196
fi
train stills 1 toy_wide "$SAMPLES_STILLS" 0 "" "1 1"
train clips 1 toy_wide_clips "$SAMPLES_CLIPS" 1 stills "1 0.35 17 0.65"
train speech 2 toy_wide "$SAMPLES_SPEECH" 2 clips "1 0.15 17 0.85"
train router 3 toy_wide "$SAMPLES_ROUTER" 3 speech "1 0.25 17 0.75"
train long 3 toy_wide_long "$SAMPLES_LONG" 4 router "1 0.15 17 0.45 49 0.4"
if selected assemble && [ -d "$OUT/long/final" ]; then
  "$PYTHON" -m training.toy.assemble --encoders "$BASE" --transformer "$OUT/long/final" --output "$OUT/bundle" \
    --recipe toy_wide
  cp "$BASE/voice_face.safetensors" "$OUT/bundle/"
fi
