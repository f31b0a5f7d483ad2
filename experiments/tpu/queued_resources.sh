#!/usr/bin/env bash
# One asset, or a file of them, on a spot slice of TPUs, by gcloud's queued resources.
#
#   BUCKET=gs://my-bucket/chair experiments/tpu/queued_resources.sh --flagfile=experiments/chair.cfg
#   BUCKET=gs://my-bucket/assets experiments/tpu/queued_resources.sh --prompts_file=prompts.txt
#
# Run it from the checkout, whose last commit it copies to the slice (prompts.txt with it; it may also
# be gs://...); it needs gcloud, logged in, with a project.
# It waits for the slice, runs the job on all of its hosts, and gives the slice back. Where the slice
# is taken away it asks for another one; the job then goes on from its newest checkpoint in the
# bucket. The script may be stopped and started again, too.
#
# NAME, ZONE, TYPE and VERSION choose the slice; POLL is the seconds between two looks at it.
set -euo pipefail

: "${BUCKET:?set BUCKET=gs://bucket/folder, to which the slice may write}"
: "${NAME:=dreamfusion}" "${ZONE:=us-west4-a}" "${TYPE:=v5litepod-4}"
: "${VERSION:=v2-alpha-tpuv5-lite}" "${POLL:=60}"

tpus() { gcloud compute tpus "$@" --zone="$ZONE"; }

state() {
  tpus queued-resources describe "$NAME" --format='value(state.state)' 2>/dev/null || echo NONE
}

on_all_hosts() { tpus tpu-vm ssh "$NAME" --worker=all --command="$1"; }

run_job() {
  # Python that JAX wants; what is there already is left alone.
  local setup='pip install --quiet uv && cd dreamfusion_jax
    && uv venv --quiet --allow-existing --python 3.12 ~/dreamfusion
    && uv pip install --quiet --python ~/dreamfusion/bin/python ".[tpu]"'
  local archive
  archive=$(mktemp)
  git archive --prefix=dreamfusion_jax/ --output="$archive" --format=tar HEAD &&
    tpus tpu-vm scp "$archive" "$NAME":dreamfusion_jax.tar --worker=all &&
    on_all_hosts "tar -xf dreamfusion_jax.tar && ${setup//$'\n'/ }" &&
    on_all_hosts "cd dreamfusion_jax && ~/dreamfusion/bin/python -m dreamfusion_jax.main $*"
}

arguments=("$@" "--workdir=$BUCKET")
quoted=$(printf '%q ' "${arguments[@]}")
failures=0
while true; do
  case $(state) in
    NONE)
      tpus queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" \
        --runtime-version="$VERSION" --spot
      ;;
    ACTIVE)
      # Inside a condition `set -e` is off, so each part of the job is joined by &&.
      if run_job "$quoted"; then
        tpus queued-resources delete "$NAME" --force --quiet
        echo "Done: $BUCKET"
        exit 0
      fi
      sleep "$POLL"
      # Not taken away: then the job itself has failed. Once may be the network's fault.
      if [[ $(state) == ACTIVE ]] && ((++failures == 2)); then
        echo "Error: the job failed twice on $NAME, which is left as it is: see above." >&2
        exit 1
      fi
      ;;
    FAILED | SUSPENDED)
      tpus queued-resources delete "$NAME" --force --quiet
      ;;
    *)
      sleep "$POLL"
      ;;
  esac
done
