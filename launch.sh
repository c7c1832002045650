#!/usr/bin/env bash
# Tandem's one command: makes the environment when it is missing or out of date, then runs what was asked.
# Runs on macOS's own bash 3.2 and with BSD or GNU tools alike; docs/COMMANDS.md lists the commands.
#
# The environment is .venv beside this file. .venv/.stamp-runtime and .venv/.stamp-dev hold the checksums of the locks
# that were installed; each is removed before an installation and written after it, so that an interrupted one shows.
set -euo pipefail

say() { printf 'tandem: %s\n' "$*" >&2; }

fail() {
    say "$@"
    exit 1
}

# The folder of this file, through any symbolic links.
find_checkout() {
    local file=$1 target
    while [ -L "$file" ]; do
        target=$(readlink "$file")
        case $target in
            /*) file=$target ;;
            *) file=$(dirname "$file")/$target ;;
        esac
    done
    cd "$(dirname "$file")" && pwd -P
}

checkout=$(find_checkout "${BASH_SOURCE[0]}")
venv=$checkout/.venv
python=$venv/bin/python
lock=$checkout/.venv.lock
log=$venv/install.log
installer=

on_terminal() { [ -t 2 ] && [ "${CI:-}" != true ]; }

checksum() { (cd "$checkout" && cat "$@" | cksum); }

stamp_is() { [ -f "$1" ] && [ -x "$python" ] && [ "$(cat "$1")" = "$2" ]; }

write_stamp() {
    printf '%s\n' "$2" >"$1.new"
    mv "$1.new" "$1"
}

# --- one bootstrap at a time ---------------------------------------------------------------------------------------

# Whether a process of an earlier bootstrap lives: it is one of ours unless `ps` shows that the number was given anew.
bootstrap_lives() {
    local pid=$1 command
    [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null || return 1
    command -v ps >/dev/null 2>&1 || return 0
    command=$(ps -p "$pid" -o args= 2>/dev/null || true)
    case $command in
        *launch.sh* | *venv* | *pip*) return 0 ;;
        *) return 1 ;;
    esac
}

lock_is_held() {
    local owner='' child=''
    # The owner writes its number right after it made the folder; a folder that stays without one was abandoned.
    [ -f "$lock/owner" ] || sleep 2
    [ -f "$lock/owner" ] && read -r owner <"$lock/owner"
    [ -f "$lock/child" ] && read -r child <"$lock/child"
    bootstrap_lives "$owner" || bootstrap_lives "$child"
}

take_lock() {
    local waited=
    while ! mkdir "$lock" 2>/dev/null; do
        [ -w "$checkout" ] || fail "cannot write to $checkout; make the folder writable and try again."
        if lock_is_held; then
            [ -n "$waited" ] || say "another launch.sh is preparing the environment; waiting for it."
            waited=yes
            sleep 1
        elif mv "$lock" "$lock.$$" 2>/dev/null; then
            rm -rf "$lock.$$"
        fi
    done
    printf '%s\n' "$$" >"$lock/owner"
    trap release_lock EXIT
    trap 'interrupted 130' INT
    trap 'interrupted 143' TERM HUP
}

release_lock() {
    rm -rf "$lock"
    trap - EXIT INT TERM HUP
}

interrupted() {
    [ -z "$installer" ] || kill "$installer" 2>/dev/null || true
    [ -z "$installer" ] || wait "$installer" 2>/dev/null || true
    say "interrupted; the next call starts the installation again."
    exit "$1"
}

# --- the environment -----------------------------------------------------------------------------------------------

# Prints a Python that can make the environment, or says plainly what is missing.
find_python() {
    local folder name why=
    for name in "${TANDEM_PYTHON:-}" python3.13 python3.12 python3.11 python3.14 python3 python; do
        [ -n "$name" ] || continue
        for folder in '' /opt/homebrew/bin/ /usr/local/bin/; do
            command -v "$folder$name" >/dev/null 2>&1 || continue
            "$folder$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue
            if ! "$folder$name" -c 'import ensurepip, venv' >/dev/null 2>&1; then
                why="$folder$name lacks the modules venv and ensurepip; install them (on Debian: python3-venv) and try again."
            elif [ "$(uname -s)" = Darwin ] &&
                ! "$folder$name" -c 'import platform, sys; sys.exit(platform.machine() != "arm64")'; then
                why="$folder$name is not a native Apple silicon Python, which MLX needs; install an arm64 Python and try again."
            else
                command -v "$folder$name"
                return 0
            fi
        done
    done
    fail "${why:-Python 3.11 or newer is needed and none was found on the PATH; install one and try again.}"
}

# Runs a command with its output in the log, showing how far pip is: on a terminal all the time, elsewhere by a line now and then.
run_logged() {
    local total=$1 status=0 started=$SECONDS said=$SECONDS done_so_far
    shift
    "$@" >>"$log" 2>&1 </dev/null &
    installer=$!
    printf '%s\n' "$installer" >"$lock/child"
    while kill -0 "$installer" 2>/dev/null; do
        sleep 0.2
        done_so_far=$(grep -c '^Collecting ' "$log" || true)
        if on_terminal; then
            printf '\r  %s of about %s packages fetched, %s s ' "$done_so_far" "$total" "$((SECONDS - started))" >&2
        elif [ "$((SECONDS - said))" -ge 10 ]; then
            said=$SECONDS
            say "$done_so_far of about $total packages fetched, $((SECONDS - started)) s."
        fi
    done
    wait "$installer" || status=$?
    installer=
    ! on_terminal || printf '\r\033[K' >&2
    return "$status"
}

pip_install() {
    local lockfile=$1 total
    shift
    total=$(grep -c '==' "$checkout/$lockfile")
    : >"$log"
    if ! PIP_DISABLE_PIP_VERSION_CHECK=1 run_logged "$total" \
        "$python" -m pip install --no-input --progress-bar off "$@" -r "$checkout/$lockfile"; then
        grep -v '^WARNING' "$log" | tail -n 5 >&2 || true
        fail "the packages of $lockfile could not be installed (all of it: $log); check the network and the disk, then try again."
    fi
}

make_environment() {
    local found
    found=$(find_python)
    say "first start: making $venv with $("$found" --version 2>&1)."
    "$found" -m venv --clear "$venv" >&2 ||
        fail "$found could not make $venv; check that the folder can be written and the disk has room, then try again."
}

ensure_runtime() {
    local want stamp=$venv/.stamp-runtime
    want=$(checksum requirements.txt)
    ! stamp_is "$stamp" "$want" || return 0
    take_lock
    if ! stamp_is "$stamp" "$want"; then
        # Without a stamp an earlier installation did not end: nothing in it can be trusted.
        if [ -f "$stamp" ] && [ -x "$python" ]; then
            say "the locked packages changed; installing the new ones."
        else
            make_environment
            say "installing the locked packages; this takes about a minute, once."
        fi
        rm -f "$stamp"
        pip_install requirements.txt
        write_stamp "$stamp" "$want"
    fi
    release_lock
}

ensure_dev() {
    local want stamp=$venv/.stamp-dev begun=$venv/.dev-begun
    want=$(checksum requirements.txt requirements-dev.txt)
    ! stamp_is "$stamp" "$want" || return 0
    take_lock
    if ! stamp_is "$stamp" "$want"; then
        say "installing the packages for the tests."
        rm -f "$stamp"
        if [ -f "$begun" ]; then
            pip_install requirements-dev.txt --force-reinstall
        else
            : >"$begun"
            pip_install requirements-dev.txt
        fi
        rm -f "$begun"
        write_stamp "$stamp" "$want"
    fi
    release_lock
}

# --- the test command ----------------------------------------------------------------------------------------------

failed_checks=

check() {
    local name=$1
    shift
    say "test: $name"
    "$@" || failed_checks="$failed_checks $name"
}

# All checks, pytest last; with arguments, pytest alone with them; with --clients, those of others instead.
run_tests() {
    cd "$checkout"
    if [ "${1:-}" = --clients ]; then
        shift
        check clients "$python" -m tests.clients ${1+"$@"}
    elif [ $# -eq 0 ]; then
        check ruff "$python" -m ruff check --quiet .
        check format "$python" -m ruff format --quiet --check .
        check mypy "$python" -m mypy
        check imports "$python" -c "from importlinter.cli import lint_imports_command as run; run()" --no-cache
        check shellcheck "$venv/bin/shellcheck" launch.sh .ci/run
        # More than two cores keep busy: many tests wait for processes of theirs.
        check pytest "$python" -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder
    else
        check pytest "$python" -m pytest "$@"
    fi
    [ -z "$failed_checks" ] || fail "these checks failed:$failed_checks"
}

# What would send Python or pip elsewhere, or have every process compile Tandem anew.
unset PYTHONHOME PYTHONDONTWRITEBYTECODE PIP_TARGET PIP_PREFIX PIP_USER PIP_REQUIRE_VIRTUALENV
export PYTHONPATH=$checkout
ensure_runtime
if [ "${1:-}" = test ]; then
    shift
    ensure_dev
    run_tests ${1+"$@"}
else
    # -P: the caller's folder is not searched for modules, whatever lies there
    exec "$python" -P -m cluster.cli ${1+"$@"}
fi
