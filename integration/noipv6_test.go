//go:build integration

package integration

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"ptgate/integration/ports"
	"ptgate/integration/realpt"
)

// withoutIPv6 is the first argument that has this test program run the rest of its
// arguments as a command for which the kernel has no IPv6.
const withoutIPv6 = "without-ipv6"

// refuseIPv6 becomes argv with every socket(AF_INET6, …) refused, as by a kernel
// that was built without IPv6. What argv starts is refused them, too.
func refuseIPv6(argv []string) error {
	// seccomp(2): struct seccomp_data has the number of the system call at 0, and its
	// first argument at 16.
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	skipUnless := func(value uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: value, Jf: skip}
	}
	answer := func(value uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: value}
	}
	filter := []unix.SockFilter{
		load(0),
		skipUnless(unix.SYS_SOCKET, 3),
		load(16),
		skipUnless(unix.AF_INET6, 1),
		answer(unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)),
		answer(unix.SECCOMP_RET_ALLOW),
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread() // the filter is this thread's, and exec keeps that one
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0); err != nil {
		return err
	}
	return unix.Exec(argv[0], argv, os.Environ())
}

// TestNoIPv6: where the kernel has no IPv6, a listener on all addresses serves IPv4,
// at each place that has one, and an IPv6 destination is unreachable, no more.
func TestNoIPv6(t *testing.T) {
	o := serveOrigin(t)
	none := setting{hosts: originHosts, noIPv6: true}
	for _, pt := range []speaker{
		{name: "built in"},
		{name: "ptgate pt", isolate: true},
		{name: "obfs4proxy", exec: []string{realpt.Program(t, "obfs4proxy")}},
	} {
		for _, all := range []string{"", "[::]"} {
			t.Run(pt.name+" on "+all, func(t *testing.T) {
				port := portOf(t, ports.Free(t))
				pair := func(exit string) (client *box) {
					server := run(t, "server", debugLog+"[[serve]]\ntransport = \"obfs4\"\nbind = \""+all+":"+port+"\"\npublic = \"127.0.0.1:"+port+"\"\n"+exit+pt.table("obfs4"), none)
					fronts := fmt.Sprintf("[listen]\nsocks5 = \"%[1]s:0\"\nhttp = \"%[1]s:0\"\nallow = [\"127.0.0.0/8\"]\n", all)
					client = run(t, "client", debugLog+fronts+lineBridge(bridgeLine(t, server), "")+everythingVia("far")+pt.table("obfs4"), none)
					if _, reply := socksOpen(t, "127.0.0.1:"+portOf(t, client.socks()), "2606:4700::1111", "80"); reply != 4 {
						t.Errorf("an IPv6 destination: reply %d, want 4", reply)
					}
					return client
				}
				client := pair(openExit)
				for _, way := range [][]string{
					{"--socks5-hostname", "127.0.0.1:" + portOf(t, client.socks())},
					{"-x", "http://127.0.0.1:" + portOf(t, client.http())},
				} {
					if got := curl(t, append(way, o.http+"/hello")...); got != helloText {
						t.Errorf("%v: %q", way, got)
					}
				}
				port = portOf(t, ports.Free(t))
				pair("") // with the rule about private addresses and this machine's own
			})
		}
	}
	t.Run("one IPv6 address", func(t *testing.T) {
		b := prepare(t, "six", "[listen]\nsocks5 = \"[::1]:0\"\n"+everythingDirect)
		b.launch(none)
		b.Ends(1)
		if log := b.log.String(); !strings.Contains(log, "[::1]:0: socket: address family not supported") {
			t.Errorf("it does not say why:\n%s", log)
		}
	})
}

// TestIPv6SwitchedOff: the kernel makes IPv6 sockets, but no interface has IPv6. The
// namespaces of these tests are so.
func TestIPv6SwitchedOff(t *testing.T) {
	space := newSpace(t, originHosts)
	o := serveOriginAt(t, space, "127.0.0.1:80", "127.0.0.1:443")
	s := setting{netns: space}
	server := run(t, "server", debugLog+"[[serve]]\ntransport = \"obfs4\"\nbind = \":9001\"\npublic = \"127.0.0.1:9001\"\n"+openExit, s)
	run(t, "client", debugLog+"[listen]\nsocks5 = \":1080\"\nallow = [\"127.0.0.0/8\"]\n"+lineBridge(bridgeLine(t, server), "")+everythingVia("far"), s)
	curl := []string{"ip", "netns", "exec", space, "curl", "-sS", "--max-time", "30", "--socks5-hostname", "127.0.0.1:1080"}
	if got := must(t, append(curl, o.http+"/hello")...); got != helloText {
		t.Errorf("got %q", got)
	}
	if _, stderr, code := command(t, nil, append(curl, "http://[2606:4700::1111]/")...); code != 97 || !strings.Contains(stderr, "(4)") {
		t.Errorf("an IPv6 destination: exit code %d, %s, want reply 4", code, stderr)
	}
}
