#!/usr/bin/env bash
# What settles the most on COCO 2017, in order of cost: torchvision's and Detectron2's published weights scored,
# Table 3 (c) trained in the modern way, the paper's Tables 1 to 3, each row from one seed. It first says what the
# steps need. OUT/results.md has what came out beside the paper's figures and the field's. The same command again
# passes over what is done and goes on where it stopped; what failed is tried again.
#
#     bash scripts/reproduce_coco.sh /data/coco --devices 8
#     bash scripts/reproduce_coco.sh /data/coco --steps torchvision,detectron2 --detectron2 downloads
#     bash scripts/reproduce_coco.sh /data/coco --steps modern --devices 8 -- --trainer.precision bf16-mixed
#
# The root of COCO is datasets/coco by default. Options:
#     --devices N               GPUs of each run, 0 for none; 1 by default
#     --out OUT                 folder of the results, of one COCO; runs/coco by default
#     --steps A,B               only these of torchvision, detectron2, modern, paper
#     --detectron2 FOLDER       with Detectron2's files, model_final_*.pkl; without it that step is left out
#     --torchvision FOLDER      with torchvision's files, *.pth, which are downloaded otherwise
#     --images_per_second R     what your machine trains in a second, for the hours that are told beforehand
#     --dry-run                 only say what would be done
#     -- WORDS                  to each `fpn fit` and `fpn test` of these steps
set -uo pipefail
fail() { printf 'reproduce_coco.sh: %s\n' "$1" >&2; exit 2; }
root='' devices=1 out=runs/coco detectron2='' torchvision='' images_per_second='' dry='' failed=0
all=torchvision,detectron2,modern,paper steps=torchvision,detectron2,modern,paper
page=$(dirname "$0")/reproduce_page.py PYTHON=${PYTHON:-$(dirname "$0")/../.venv/bin/python}

while [ $# -gt 0 ]; do
    case $1 in
        --) shift; break ;;
        -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p;}' "$0"; exit ;;
        --dry-run) dry=--dry-run; shift ;;
        --devices | --out | --steps | --detectron2 | --torchvision | --images_per_second)
            [ -n "${2:-}" ] || fail "$1 needs a value"
            printf -v "${1#--}" %s "$2"; shift 2 ;;
        -*) fail "no option $1; --help lists them" ;;
        *) [ -z "$root" ] || fail "two roots of COCO, $root and $1: give one"
            root=$1; shift ;;
    esac
done
[ "${BASH_VERSINFO[0]}${BASH_VERSINFO[1]}" -ge 44 ] && command -v flock > /dev/null || fail 'bash 4.4 and flock are needed'
declare -A sums=()
root=${root:-datasets/coco} given=("$@")
command -v "$PYTHON" > /dev/null || fail "no $PYTHON: run make test, or set PYTHON"
[[ $devices =~ ^[0-9]+$ ]] || fail "--devices $devices: give a number of GPUs"
[[ ${images_per_second:-1} =~ ^[0-9]*[.]?[0-9]+$ && ${images_per_second:-1} =~ [1-9] ]] ||
    fail "--images_per_second $images_per_second: give a number above 0"
for step in ${steps//,/ }; do [[ ,$all, == *,"$step",* ]] || fail "no step $step; there are $all"; done
for folder in "$detectron2" "$torchvision"; do [ -d "${folder:-.}" ] || fail "$folder: no such folder"; done
for split in val2017 $([[ $steps =~ modern|paper ]] && echo train2017); do
    for path in "$root/$split" "$root/annotations/instances_$split.json"; do
        [ -n "$dry" ] || [ -e "$path" ] || fail "$path is missing: give the root of COCO 2017"
    done
    [ -z "$dry" ] || continue
    sums[$split]=$(cksum < "$path") || exit 2
    [ "$(cat "$out/$split.cksum" 2> /dev/null || echo "${sums[$split]}")" = "${sums[$split]}" ] ||
        fail "$out has results of other annotations than $path: give another --out"
done
words=(--data.root "$root" "${given[@]}")
if [ -z "$dry" ]; then  # what it has started keeps the lock too
    mkdir -p "$out" && exec 9> "$out/lock" || exit 2
    flock -n 9 || fail "another run of this script, or a test that it has started, is still at $out"
fi

run() {  # a command, whose failure the others outlive; what asks it to end, as Ctrl-C, ends all of them
    local status=0
    "$@" || status=$?
    case $status in 129 | 130 | 138 | 143) exit "$status" ;; esac
    [ "$status" -eq 0 ] || failed=1
    return "$status"
}

score() {  # torchvision or detectron2, the configuration, the file of its weights
    local folder=${!1} to=$out/published/$2 command=("$PYTHON" -m fpn test) other=''
    [[ ,$steps, == *,$1,* ]] || return
    if [ -f "$to/scores.json" ]; then
        [ "$(cat "$to/words.txt" 2> /dev/null)" = "$(printf '%s\n' "${given[@]}")" ] ||
            other=$("$PYTHON" "$page" differs "$to/words.txt" -- "${given[@]}") || failed=1
        [ -z "$other" ] || [ -n "$dry" ] || failed=1
        echo "$2: scored earlier${other:+ with other words ($other): give another --out, or remove $to}"
        return
    fi
    [ "$1" = torchvision ] || [ -n "$folder" ] || { echo "$2: left out without --detectron2 FOLDER"; return; }
    [ -z "$folder" ] || [ -f "$folder/$3" ] || { echo "$2: left out, as there is no $folder/$3"; return; }
    [ "$1" = torchvision ] || command+=(--config conventions/detectron2)
    command+=(--config "interop/$2")
    [ -z "$folder" ] || command+=(--model.start_from "$folder/$3")
    if [ "$devices" -gt 0 ]; then command+=(--trainer.devices "$devices"); else command+=(--trainer.accelerator cpu); fi
    command+=("${words[@]}" --trainer.logger fpn.lit.metrics_file.MetricsFile --trainer.logger.save_dir "$out")
    command+=(--trainer.logger.name published --trainer.logger.version "$2.begun")
    echo "$2: ${command[*]}"
    [ -z "$dry" ] || return
    rm -rf "$to.begun"
    run "${command[@]}" && printf '%s\n' "${given[@]}" > "$to.begun/words.txt" && mv "$to.begun" "$to"
}

ablate() {  # family, tables, further options
    [[ ,$steps, == *,$1,* ]] || return
    run "$PYTHON" -m fpn ablate "${@:2}" --family "$1" --out "$out/$1" --devices_per_run "$devices" \
        ${dry:+"$dry"} -- "${words[@]}"
}

{ # read as a whole, so that the file may change in the days that it runs
    "$PYTHON" "$page" needs "$steps" "$out" "$devices" "$images_per_second" -- "${given[@]}" || exit
    for split in "${!sums[@]}"; do
        echo "${sums[$split]}" > "$out/$split.cksum" || exit 2
    done
    score torchvision torchvision_coco_v1 fasterrcnn_resnet50_fpn_coco-258fb6c6.pth
    score torchvision torchvision_v2 fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth
    score torchvision torchvision_mobilenet fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7.pth
    score torchvision torchvision_mobilenet_320 fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth
    score detectron2 detectron2_r50_1x model_final_b275ba.pkl
    score detectron2 detectron2_r50_3x model_final_280758.pkl
    score detectron2 detectron2_r101_3x model_final_f6e8b1.pkl
    score detectron2 detectron2_rpn_1x model_final_02ce48.pkl
    ablate modern table3 --rows c
    ablate paper table1 table2 table3
    [ -n "$dry" ] || "$PYTHON" "$page" page "$out" || exit
    exit "$failed"
}
