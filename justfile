# The usual combinations, for `just NAME`. Each line is a cargo command or a script that works without just.

# What can be run
default:
    @{{ quote(just_executable()) }} --list --unsorted

# Format, lints and unit tests: the two-minute loop
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    cargo test --workspace --lib --bins

# Every test of a plain `cargo test`, on a control plane of its own; arguments go to cargo: just test --test cluster
test *args:
    cargo test --workspace {{ args }}

# What guards every merge
ci:
    .ci/run

# `ci`, and what is too slow for every merge
full:
    .ci/full

# Format everything, fuzz targets too
fmt:
    cargo fmt --all
    cargo fmt --manifest-path fuzz/Cargo.toml

# Write CRDs, openapi.json and deploy/ anew from the code
generate:
    cargo run --quiet -- crds --dir crds
    cargo run --quiet -- crds --dir charts/tokenward/files/crds
    cargo run --quiet -- openapi > openapi.json
    TOKENWARD_RENDER=1 cargo test --test chart -- plain_manifests

# A story on a real control plane; `just demo --keep` stays up
demo *args:
    cargo demo {{ args }}

# The development cluster: just cluster up --node, just cluster down
cluster *args:
    cargo cluster {{ args }}

# Benchmarks: just bench checks rates
bench name="checks" *args:
    cargo bench --bench {{ name }} -- {{ args }}

# Fuzz one target for a minute: just fuzz verify
fuzz target seconds="60":
    mkdir -p fuzz/corpus/{{ target }}
    cargo fuzz run -s none {{ target }} fuzz/corpus/{{ target }} fuzz/seeds/{{ target }} -- -dict=fuzz/dictionary -max_total_time={{ seconds }}

# The container image; prints its path
image arch="":
    image/build {{ arch }}
