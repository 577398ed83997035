# Sourced by tools/run, tools/test and others: a Python that will do, and a virtual environment that is made once and kept
# until pyproject.toml, what is locked, the Python or the place of the checkout changes. Everything goes under .adcore/.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '%s: %s\n' "$program" "$*" >&2; }
die() { say "$*"; exit 1; }

# Sets `python` to the first Python that adcore runs on.
find_python() {
    local candidate found=
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        command -v "$candidate" >/dev/null || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            # Of a virtual environment (ours may be on the PATH) the Python that it was made with: it is going to be
            # made again with this one.
            python=$("$candidate" -c 'import sys; print(sys._base_executable)')
            return
        fi
        found+="$candidate is $("$candidate" -c 'import platform; print(platform.python_version())'), "
    done
    [ -n "$found" ] || die "no python3 here: install Python 3.11 or newer (Debian: apt install python3 python3-venv)"
    die "${found%, }; adcore needs 3.11 or newer (Debian 12 has it; else name one: PYTHON=/path/to/python3.11)"
}

# Whether that Python can make virtual environments (Debian keeps the half of it in a package of its own).
python_has_venv() { "$python" -c 'import ensurepip, venv' 2>/dev/null; }

# run_pip VENV LOG ARGUMENT...: what it says goes to LOG.errors.
run_pip() {
    local venv=$1 log=$2 bar=off
    shift 2
    if [ -t 1 ]; then bar=on; fi
    "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --progress-bar "$bar" --log "$log" "$@" \
        2>"$log.errors"
}

# install_locked VENV LOG NAME...: what tools/requirements has under each name, and nothing whose hash is another one.
install_locked() {
    local venv=$1 log=$2 name files=()
    shift 2
    for name; do files+=(-r "$root/tools/requirements/$name.txt"); done
    # First what builds: there is no wheel of mysqlclient, and pip would fetch that without looking at hashes.
    run_pip "$venv" "$log" --require-hashes --only-binary :all: -r "$root/tools/requirements/build.txt" &&
        run_pip "$venv" "$log" --require-hashes --only-binary :all: --no-binary mysqlclient --no-build-isolation "${files[@]}"
}

# make_venv DIR WHAT NAME...: with what is locked under these names, and the project, editable; WHAT is for the person
# who waits.
make_venv() {
    local venv=$1 what=$2 stamp log
    shift 2
    stamp=$( { "$python" -c 'import sys; print(sys.version, sys.executable)'; echo "$root" "$@"
        cat "$root/pyproject.toml" "$root"/tools/requirements/*.txt; } | sha256sum)
    mkdir -p "$root/.adcore"
    exec 9>"$root/.adcore/lock"
    flock 9 # two at once would build into one folder
    if [ "$(cat "$venv/stamp" 2>/dev/null)" != "$stamp" ]; then
        trap 'die "interrupted; the next run begins the installation anew"' INT
        log=$root/.adcore/pip.log
        say "making a virtual environment in ${venv#"$root/"}"
        rm -rf "$venv" "$log"
        "$python" -m venv "$venv" >"$log.errors" 2>&1 ||
            die "cannot make a virtual environment in $venv: $(tail -n 3 "$log.errors")"
        say "installing $what into it (a minute or so; details in .adcore/pip.log)"
        install_locked "$venv" "$log" "$@" &&
            run_pip "$venv" "$log" --no-deps --no-build-isolation --editable "$root" || explain_pip "$log"
        printf '%s\n' "$stamp" >"$venv/stamp"
        trap - INT
    fi
    exec 9>&-
}

# Of pip's log, the lines that say what went wrong, and what to do about the common causes.
explain_pip() {
    local errors
    errors=$(grep -oE '(ERROR: |Could not fetch URL |Could not find a version ).*' "$1" | grep -v 'ERROR: \[' | sort -u | head -5) || true
    printf '%s\n' "${errors:-$(cat "$1.errors")}" >&2
    if grep -q 'DO NOT MATCH THE HASHES' "$1"; then
        die "a package is not the one that tools/requirements locks: ask who runs your mirror; do not install it"
    elif grep -qE 'SSLError|CERTIFICATE_VERIFY_FAILED' "$1"; then
        die "pip does not trust the package index: install ca-certificates, or name your own bundle in PIP_CERT"
    elif grep -qE 'NewConnectionError|NameResolutionError|ConnectTimeout|ProxyError|from versions: none' "$1"; then
        die "pip reaches no package index: check the network, or name your mirror in PIP_INDEX_URL or pip.conf"
    fi
    die "pip could not install what is needed: see above, and the whole of it in .adcore/pip.log"
}
