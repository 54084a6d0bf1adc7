#!/usr/bin/env bash
# What a daemon that lives long must know of glibc's malloc_trim(3): does it give back what is free?
#
# The manual says that since glibc 2.8 it frees memory "in all arenas and in all chunks with whole free pages". A program takes 24 MB in
# pieces of 1,000 bytes, frees all of them and calls malloc_trim(0). Seen, with 2.36 (Debian 12) and 2.41 (Debian 13):
#   in the first thread                                 everything goes back
#   in another thread                                   23 MB stay, with that thread's heap, also when the thread has ended
#   in another thread, behind mallopt(M_ARENA_MAX, 1)   everything goes back
# What is free at the very end of a heap is trimmed for the first thread's alone. Others' ends go back by themselves when more than the
# threshold is free there, but one large block that was freed earlier (here 30 MB, as a file that was read whole) has raised that to twice
# its size. So a daemon that does now and then in a helper thread what takes much memory keeps it, once for each such heap.
# Needs gcc, curl and dpkg-deb, on amd64. Fails when a release does otherwise.
set -euo pipefail
at=$(mktemp -d)
trap 'rm -rf "$at"' EXIT
cd "$at"
cat >heap.c <<'C'
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static long rss_kb(void) {
    long pages = 0, rss = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f || fscanf(f, "%ld %ld", &pages, &rss) != 2) exit(2);
    fclose(f);
    return rss * (sysconf(_SC_PAGESIZE) / 1024);
}

static void *work(void *unused) {
    static void *p[24000];
    for (int i = 0; i < 24000; i++) p[i] = malloc(1000), ((char *)p[i])[0] = 1;
    for (int i = 0; i < 24000; i++) free(p[i]);
    return unused;
}

/* heap first|other [one] */
int main(int argc, char **argv) {
    pthread_t t;
    if (argc > 2) mallopt(M_ARENA_MAX, 1);
    free(malloc(30 << 20));
    long before = rss_kb();
    if (argv[1][0] == 'f') work(NULL);
    else if (pthread_create(&t, NULL, work, NULL) || pthread_join(t, NULL)) return 2;
    malloc_trim(0);
    printf("%ld\n", (rss_kb() - before) / 1024);
}
C
# A program that was built with a newer glibc than 2.36 may not run with that.
gcc -O0 -pthread -o heap heap.c
failed=0
for version in 2.36-9+deb12u14 2.41-12+deb13u5; do
    curl -sfLO "https://deb.debian.org/debian/pool/main/g/glibc/libc6_${version}_amd64.deb" || {
        echo "libc6 $version: not in the archive any more; see which version is, and what that does"
        exit 1
    }
    dpkg-deb -x "libc6_${version}_amd64.deb" "$version"
    libraries=$(dirname "$(find "$version" -name libc.so.6)")
    stays() { "$(find "$version" -name 'ld-linux-x86-64.so.2' -type f | head -1)" --library-path "$libraries" ./heap "$@"; }
    first=$(stays first) other=$(stays other) one=$(stays other one)
    echo "libc6 $version: of 24 MB stay $first (first thread), $other (another), $one (another, one arena)"
    if [ "$first" -gt 2 ] || [ "$other" -lt 20 ] || [ "$one" -gt 2 ]; then
        echo "  expected: 0, 23, 0"
        failed=1
    fi
done
exit $failed
