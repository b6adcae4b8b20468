package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// An origin does what a connection's first byte asks for.
type origin struct {
	net.Listener
	addr string
}

const (
	roleEcho   = 'e' // sends everything back
	roleSource = 'd' // sends without end
	roleSink   = 'u' // takes without end
)

func startOrigin() (*origin, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go serveOrigin(c)
		}
	}()
	return &origin{ln, ln.Addr().String()}, nil
}

// arrived counts what sinks take.
var arrived atomic.Int64

func serveOrigin(c net.Conn) {
	defer c.Close()
	var role [1]byte
	if readFull(c, role[:]) != nil {
		return
	}
	switch role[0] {
	case roleEcho:
		var b [512]byte
		c.Write(role[:])
		for {
			n, err := c.Read(b[:])
			if err != nil {
				return
			}
			c.Write(b[:n])
		}
	case roleSource:
		b := make([]byte, 256<<10)
		for {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	case roleSink:
		b := make([]byte, 256<<10)
		for {
			n, err := c.Read(b)
			arrived.Add(int64(n))
			if err != nil {
				return
			}
		}
	}
}

func readFull(c net.Conn, b []byte) error {
	_, err := io.ReadFull(c, b)
	return err
}

// A work is one thing to measure.
type work struct {
	name string
	run  func(*running) (float64, error)
}

var works = []work{
	// First, before anything else has left garbage.
	{"idle, KiB/connection", func(r *running) (float64, error) { return idle(r, 300) }},
	{"first byte, ms", firstByte},
	{"connections/s", rate},
	{"down, 1 stream, MiB/s", func(r *running) (float64, error) { return bulk(r, 1, roleSource) }},
	{"up, 1 stream, MiB/s", func(r *running) (float64, error) { return bulk(r, 1, roleSink) }},
	{"down, 4 streams, MiB/s", func(r *running) (float64, error) { return bulk(r, 4, roleSource) }},
	{"up, 4 streams, MiB/s", func(r *running) (float64, error) { return bulk(r, 4, roleSink) }},
}

// open makes a connection and waits for its first byte to come back.
func open(r *running) (net.Conn, error) {
	c, err := r.dial()
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	var b [1]byte
	if _, err = c.Write([]byte{roleEcho}); err == nil {
		err = readFull(c, b[:])
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	c.SetDeadline(time.Time{})
	return c, nil
}

func firstByte(r *running) (float64, error) {
	took := make([]float64, 0, 200)
	for range 200 {
		begin := time.Now()
		c, err := open(r)
		if err != nil {
			return 0, err
		}
		took = append(took, time.Since(begin).Seconds()*1000)
		c.Close()
	}
	slices.Sort(took)
	return took[len(took)/2], nil
}

func rate(r *running) (float64, error) {
	var done atomic.Int64
	var failed atomic.Pointer[error]
	begin := time.Now()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for time.Since(begin) < *dur {
				c, err := open(r)
				if err != nil {
					failed.Store(&err)
					return
				}
				c.Close()
				done.Add(1)
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return float64(done.Load()) / time.Since(begin).Seconds(), nil
}

// bulk counts at the end that receives, after a time to get going.
func bulk(r *running, streams int, role byte) (float64, error) {
	var got atomic.Int64
	count := &got
	if role == roleSink {
		count = &arrived
	}
	var wg sync.WaitGroup
	conns := make([]net.Conn, streams)
	for i := range conns {
		c, err := r.dial()
		if err != nil {
			return 0, err
		}
		conns[i] = c
		if _, err := c.Write([]byte{role}); err != nil {
			return 0, err
		}
		wg.Go(func() {
			b := make([]byte, 256<<10)
			for {
				if role == roleSink {
					if _, err := c.Write(b); err != nil {
						return
					}
					continue
				}
				n, err := c.Read(b)
				got.Add(int64(n))
				if err != nil {
					return
				}
			}
		})
	}
	wait(300 * time.Millisecond)
	n, begin := count.Load(), time.Now()
	wait(*dur)
	moved, took := count.Load()-n, time.Since(begin)
	for _, c := range conns {
		c.Close()
	}
	wg.Wait()
	if moved == 0 {
		return 0, errors.New("nothing arrived")
	}
	return float64(moved) / (1 << 20) / took.Seconds(), nil
}

func wait(d time.Duration) { <-time.After(d) }

// idle is the memory that n idle connections add to the system's processes.
func idle(r *running, n int) (float64, error) {
	for range 20 { // one-time costs
		c, err := open(r)
		if err != nil {
			return 0, err
		}
		c.Close()
	}
	wait(500 * time.Millisecond)
	before := rss(r.pids)
	conns, err := openMany(r, n)
	defer closeAll(conns)
	if err != nil {
		return 0, err
	}
	wait(500 * time.Millisecond)
	return float64(rss(r.pids)-before) / float64(n), nil
}

func openMany(r *running, n int) ([]net.Conn, error) {
	conns := make([]net.Conn, n)
	var next atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && failed.Load() == nil; i = int(next.Add(1)) - 1 {
				c, err := open(r)
				if err != nil {
					failed.Store(&err)
					return
				}
				conns[i] = c
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return conns, *err
	}
	return conns, nil
}

func closeAll(conns []net.Conn) {
	for _, c := range conns {
		if c != nil {
			c.Close()
		}
	}
}

// runScale opens ever more idle connections through an exit and asks what a new
// one costs beside them.
func runScale(ctx context.Context) error {
	// The origin is a process of its own: its descriptors count against another limit.
	cmd := exec.CommandContext(ctx, os.Args[0], "-serve-origin")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer cmd.Wait()
	defer stdin.Close()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		return fmt.Errorf("origin: %w", err)
	}
	origin := strings.TrimSpace(line)
	d, err := os.MkdirTemp(*dir, "scale-")
	if err != nil {
		return err
	}
	r, err := startBoxes(ctx, d, origin, "exit", "", "")
	if err != nil {
		return err
	}
	defer r.stop()
	if _, err := rate(r); err != nil {
		return err
	}
	wait(time.Second)
	base, files := rss(r.pids), descriptors(r.pids)
	fmt.Printf("| idle connections | KiB each | descriptors each | new connection, CPU ms |\n|---|---|---|---|\n")
	var conns []net.Conn
	defer func() { closeAll(conns) }()
	for _, n := range []int{10, 100, 1000, 10000} {
		more, err := openMany(r, n-len(conns))
		conns = append(conns, more...)
		if err != nil {
			return fmt.Errorf("at %d connections: %w", n, err)
		}
		wait(time.Second)
		each := float64(rss(r.pids)-base) / float64(n)
		fds := float64(descriptors(r.pids)-files) / float64(n)
		cpu := processor(r.pids)
		const asked = 1000
		for range asked {
			c, err := open(r)
			if err != nil {
				return err
			}
			c.Close()
		}
		fmt.Printf("| %d | %.1f | %.2f | %.3f |\n", n, each, fds, (processor(r.pids)-cpu).Seconds()*1000/asked)
	}
	closeAll(conns)
	conns = nil
	wait(5 * time.Second)
	fmt.Printf("\nafter they closed: %d KiB and %d descriptors more than before\n", rss(r.pids)-base, descriptors(r.pids)-files)
	return nil
}

// rss is the resident memory of processes and their children, in KiB.
func rss(pids []int) (kib int) {
	for _, p := range withChildren(pids) {
		for line := range strings.Lines(proc(p, "status")) {
			if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
				n, _ := strconv.Atoi(strings.Fields(rest)[0])
				kib += n
			}
		}
	}
	return kib
}

// processor is the processor time that they have used. The clock ticks are those
// of Linux on every architecture that Go runs on.
func processor(pids []int) (t time.Duration) {
	for _, p := range withChildren(pids) {
		_, rest, ok := strings.Cut(proc(p, "stat"), ") ")
		if f := strings.Fields(rest); ok && len(f) > 12 {
			user, _ := strconv.Atoi(f[11])
			system, _ := strconv.Atoi(f[12])
			t += time.Duration(user+system) * 10 * time.Millisecond
		}
	}
	return t
}

func descriptors(pids []int) (n int) {
	for _, p := range withChildren(pids) {
		d, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p))
		n += len(d)
	}
	return n
}

func withChildren(pids []int) (all []int) {
	for _, p := range pids {
		all = append(append(all, p), children(p)...)
	}
	return all
}

// children lists a process's descendants.
func children(pid int) (all []int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, t := range tasks {
		b, _ := os.ReadFile(t)
		for _, f := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(f); err == nil {
				all = append(append(all, n), children(n)...)
			}
		}
	}
	return all
}

func proc(pid int, file string) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	return string(b)
}
