#!/usr/bin/env bash
# Fails on an import that goes up, and on a module of the library or of the command that stands in no layer.
#
# Each line is a layer, the lowest first: its name, and its modules. A module may import those of the lines above
# its own, not those beside it. What a test imports does not count.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

library='
base        sync units
base        error size
base        file_lock handed_file log_limit memory mounts named_file sector_size stats time unix_socket users waker
base        algorithm block_device latency selection
base        recompression
codec       codec
stores      pool spill
images      image
shards      origin shard
config      config
engine      engine
io          io
maintain    maintain
device      device
words       attributes
frontends   control fuse nbd
'

# What is typed, what it means, what is there while devices are served, what a verb does about it.
command='
base        base
args        args
settings    settings
runtime     runtime
verbs       verbs
'

# hold TREE LAYERS
hold() {
    # shellcheck disable=SC2016  # The program is awk's.
    find "$1" -name '*.rs' ! -path '*/tests/*' ! -name tests.rs ! -name lib.rs ! -name main.rs ! -name fuzzing.rs -print0 |
        sort -z | xargs -0 awk -v tree="$1/" -v layers="$2" '
    BEGIN {
        lines = split(layers, line, "\n")
        for (i = 1; i <= lines; i++) {
            words = split(line[i], word, " ")
            for (j = 2; j <= words; j++) {
                level[word[j]] = i
                name[word[j]] = word[1]
            }
        }
    }
    FNR == 1 {
        in_tests = 0
        module = substr(FILENAME, length(tree) + 1)
        sub(/(\/.*|\.rs)$/, "", module)
        if (!(module in level) && !(module in lost)) {
            lost[module] = 1
            printf "%s: the module %s stands in no layer of scripts/layers.sh\n", FILENAME, module
            bad = 1
        }
    }
    /^#\[cfg\(test\)\]/ { after_cfg = FNR }
    /^mod tests \{/ && after_cfg == FNR - 1 { in_tests = 1 }
    in_tests || after_cfg == FNR - 1 { next }
    {
        text = $0
        sub(/\/\/.*/, "", text)
        if (text ~ /crate::\{/) {
            printf "%s:%d: crate::{: import each module by a line of its own\n", FILENAME, FNR
            bad = 1
        }
        while (match(text, /crate::[A-Za-z_]+/)) {
            import = substr(text, RSTART + 7, RLENGTH - 7)
            text = substr(text, RSTART + RLENGTH)
            if (import == module) continue
            if (!(import in level)) {
                printf "%s:%d: crate::%s: import it from its module\n", FILENAME, FNR, import
                bad = 1
            } else if (level[import] >= level[module]) {
                printf "%s:%d: crate::%s goes up: %s is in the layer %s, %s in %s\n", \
                    FILENAME, FNR, import, module, name[module], import, name[import]
                bad = 1
            }
        }
    }
    END { exit bad }
'
}

hold src "$library"
hold cli/src "$command"
