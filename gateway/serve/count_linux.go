package serve

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// canCount says whether count can work on this system at all.
const canCount = true

// count counts the TCP connections to an address that the processes of a group hold,
// and tells whether the group listens on any TCP port. It fails if /proc does not show
// the processes or their files. Its mount options may hide them, and so may the
// capabilities of a program.
//
// A connection counts as long as a process has it open, in any state of TCP. If the
// service has ended it, the process may still have bytes to read.
func count(group int, to netip.AddrPort) (n int64, listening bool, err error) {
	members, err := groupMembers(group)
	if err != nil {
		return 0, false, err
	}
	found := map[string]bool{} // inodes: a socket may be held by several processes
	for _, dir := range members {
		connected, listens, err := sockets(dir, to)
		if err == nil && len(connected)+len(listens) == 0 {
			continue
		}
		fds, e := os.ReadDir(dir + "/fd")
		if err = errors.Join(err, e); errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // the process has ended since
		} else if err != nil {
			return 0, false, err
		}
		for _, fd := range fds {
			link, err := os.Readlink(dir + "/fd/" + fd.Name())
			if err != nil {
				continue // closed since
			}
			inode, ok := strings.CutPrefix(link, "socket:[")
			if !ok {
				continue
			}
			inode = strings.TrimSuffix(inode, "]")
			if connected[inode] {
				found[inode] = true
			}
			if listens[inode] {
				listening = true
			}
		}
	}
	return int64(len(found)), listening, nil
}

// groupMembers lists the directories of a group's processes in /proc.
func groupMembers(group int) (dirs []string, err error) {
	// The leader is there until its parent has waited for it, even if it has ended.
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/stat", group)); err != nil {
		return nil, err
	}
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, dir := range all {
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue // it has ended since
		}
		// proc(5): pid (name) state parent group; the name may have anything in it.
		_, rest, _ := bytes.Cut(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" "))
		f := bytes.Fields(rest)
		if len(f) > 2 && string(f[2]) == strconv.Itoa(group) && f[0][0] != 'Z' {
			dirs = append(dirs, dir)
		}
	}
	return dirs, nil
}

// sockets gives the inodes of the TCP sockets in a process's network that are connected
// to an address, and of those that listen.
func sockets(dir string, to netip.AddrPort) (connected, listens map[string]bool, err error) {
	connected, listens = map[string]bool{}, map[string]bool{}
	read := func(file string, addr []byte) error {
		f, err := os.Open(dir + file)
		if err != nil {
			return err
		}
		defer f.Close()
		remote := fmt.Appendf(nil, "%s:%04X", words(addr), to.Port())
		listen := []byte(" 0A ")
		// The table may have thousands of lines, most of them of other programs: they are
		// looked at one by one, and none is kept.
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			line := lines.Bytes()
			if !bytes.Contains(line, remote) && !bytes.Contains(line, listen) {
				continue // the quick test
			}
			// sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode
			f := bytes.Fields(line)
			switch {
			case len(f) < 10 || string(f[9]) == "0": // nobody holds it
			case string(f[3]) == "0A":
				listens[string(f[9])] = true
			case bytes.Equal(f[2], remote):
				connected[string(f[9])] = true
			}
		}
		return lines.Err()
	}
	var four []byte // nil: the table of IPv4 can't have this address
	if to.Addr().Unmap().Is4() {
		four = to.Addr().Unmap().AsSlice()
	}
	err = read("/net/tcp", four)
	six := to.Addr().As16() // an IPv4 address is in the table of IPv6 as ::ffff:a.b.c.d
	if e := read("/net/tcp6", six[:]); err == nil && !os.IsNotExist(e) {
		err = e // ErrNotExist: a kernel without IPv6
	}
	return connected, listens, err
}

// words is an address as the kernel prints it in these tables: words of 32 bits in the
// machine's own byte order.
func words(addr []byte) (text string) {
	for ; len(addr) > 0; addr = addr[4:] {
		text += fmt.Sprintf("%08X", binary.NativeEndian.Uint32(addr))
	}
	return text
}
