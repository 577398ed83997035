# Sourced by tools/test and perf/run, after venv.sh: installs the Debian packages in the array `missing`.

apt_get() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y "$@" >"$root/.adcore/apt.log" 2>&1 && return
    tail -n 20 "$root/.adcore/apt.log" >&2
    return 1
}

install_missing() {
    command -v apt-get >/dev/null ||
        die "not a Debian system; install what these Debian packages hold, then run this again: ${missing[*]}"
    as_root=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || die "no sudo here; as root run: apt-get install --no-install-recommends ${missing[*]}"
        as_root=(sudo)
    fi
    say "installing from the distribution: ${missing[*]} (details in .adcore/apt.log)"
    # Debian starts a service when it installs one. The tests start their own, in temporary folders; this host's
    # ports 80, 3306 and 11211 are no business of theirs. Exit status 101 is "action forbidden by policy".
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ] || grep -q "$root/$program" "$policy"; then # ours may be left over from a killed run
        trap '"${as_root[@]}" rm -f "$policy"' EXIT
        printf '#!/bin/sh\n# made by %s for a moment; remove it\nexit 101\n' "$root/$program" |
            "${as_root[@]}" tee "$policy" >/dev/null
        "${as_root[@]}" chmod 755 "$policy"
    fi
    mkdir -p "$root/.adcore"
    apt_get update || die "apt-get update failed: check the network and /etc/apt/sources.list"
    apt_get install --no-install-recommends "${missing[@]}" || die "apt-get could not install: ${missing[*]}"
    if [ "$(trap -p EXIT)" ]; then
        "${as_root[@]}" rm -f "$policy"
        trap - EXIT
    fi
    case " ${missing[*]} " in *" mariadb-server "* | *" memcached "* | *" nginx "*)
        say "no service was started; a host with systemd starts them at its next boot unless you disable them" ;;
    esac
}
