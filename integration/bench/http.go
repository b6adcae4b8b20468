package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log"
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

// A proxy is a forward proxy for plain HTTP.
type proxy struct {
	name  string
	start func(ctx context.Context, dir, addr string) (*running, error) // nil: no proxy at all
}

var proxies = []proxy{
	{"no proxy", nil},
	{"ptgate", func(ctx context.Context, dir, addr string) (*running, error) {
		return startPtgate(ctx, filepath.Join(dir, "http.toml"), fmt.Sprintf(
			"state_dir = %q\n[listen]\nsocks5 = []\nhttp = %q\n[[route]]\nto = \"*\"\nvia = \"direct\"\nprivate = true\n", filepath.Join(dir, "d"), addr), addr)
	}},
	{"tinyproxy", func(ctx context.Context, dir, addr string) (*running, error) {
		_, port, _ := net.SplitHostPort(addr)
		conf := filepath.Join(dir, "tinyproxy.conf")
		text := fmt.Sprintf("Port %s\nListen 127.0.0.1\nMaxClients 100\nTimeout 60\nLogLevel Critical\nDisableViaHeader Yes\n", port)
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			return nil, err
		}
		return startProgram(exec.CommandContext(ctx, "tinyproxy", "-d", "-c", conf), addr)
	}},
	{"squid", func(ctx context.Context, dir, addr string) (*running, error) {
		conf := filepath.Join(dir, "squid.conf")
		text := fmt.Sprintf("http_port %s\nhttp_access allow all\ncache deny all\naccess_log none\ncache_log /dev/null\ncache_store_log none\n"+
			"pid_filename none\nshutdown_lifetime 0 seconds\nvia off\nforwarded_for delete\npinger_enable off\nmemory_cache_shared off\n", addr)
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			return nil, err
		}
		return startProgram(exec.CommandContext(ctx, "squid", "-N", "-d1", "-f", conf), addr)
	}},
}

const (
	smallContent = 200
	largeContent = 1 << 30
)

// startWeb is an origin for plain HTTP. It answers with the length that the path names.
func startWeb() (net.Listener, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	content := make([]byte, 256<<10)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				in := bufio.NewReaderSize(c, 64<<10)
				for {
					h, err := readFields(in)
					if err != nil {
						return
					}
					if _, err := in.Discard(h.length); err != nil {
						return
					}
					n := 0
					if rest, ok := strings.CutSuffix(h.first, " HTTP/1.1"); ok {
						n, _ = strconv.Atoi(rest[strings.LastIndexByte(rest, '/')+1:])
					}
					answer := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n", n)
					for first := true; first || n > 0; first = false {
						part := content[:min(n, len(content))]
						if first && n <= 4096 {
							part = append(answer, part...)
							n = 0
						} else if first {
							part = answer
						} else {
							n -= len(part)
						}
						if _, err := c.Write(part); err != nil {
							return
						}
					}
				}
			}()
		}
	}()
	return ln, nil
}

type fields struct {
	first  string
	length int
	close  bool
}

func readFields(in *bufio.Reader) (h fields, err error) {
	for i := 0; ; i++ {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return h, err
		}
		line = bytes.TrimRight(line, "\r\n")
		switch {
		case i == 0:
			h.first = string(line)
			h.close = strings.HasPrefix(h.first, "HTTP/1.0")
		case len(line) == 0:
			return h, nil
		case len(line) > 15 && strings.EqualFold(string(line[:15]), "Content-Length:"):
			if h.length, err = strconv.Atoi(string(bytes.TrimSpace(line[15:]))); err != nil {
				return h, err
			}
		case strings.EqualFold(string(line), "Connection: close"):
			h.close = true
		}
	}
}

// A webClient sends requests over one connection as long as that is kept.
type webClient struct {
	addr string
	c    net.Conn
	in   *bufio.Reader
}

func (w *webClient) end() {
	if w.c != nil {
		w.c.Close()
		w.c = nil
	}
}

// do sends a request with so many bytes of content, and reads the response. A connection
// that was kept may have been closed without a word.
func (w *webClient) do(request []byte, content int) error {
	kept := w.c != nil
	err := w.try(request, content)
	if kept && err != nil {
		w.end()
		err = w.try(request, content)
	}
	return err
}

func (w *webClient) try(request []byte, content int) error {
	if w.c == nil {
		c, err := net.Dial("tcp", w.addr)
		if err != nil {
			return err
		}
		w.c, w.in = c, bufio.NewReaderSize(c, 256<<10)
		c.SetDeadline(time.Now().Add(time.Minute))
	}
	if _, err := w.c.Write(request); err != nil {
		return err
	}
	for b := make([]byte, min(content, 256<<10)); content > 0; content -= len(b) {
		b = b[:min(content, len(b))]
		if _, err := w.c.Write(b); err != nil {
			return err
		}
	}
	h, err := readFields(w.in)
	if err != nil {
		return err
	}
	if !strings.Contains(h.first, " 200 ") {
		return fmt.Errorf("answer %q", h.first)
	}
	if _, err := w.in.Discard(h.length); err != nil {
		return err
	}
	if h.close {
		w.end()
	}
	return nil
}

// webRate counts requests, on so many connections at the same time.
func webRate(clients int, fresh bool) func(addr, origin string, pids []int) (float64, error) {
	return func(addr, origin string, _ []int) (float64, error) {
		request := fmt.Appendf(nil, "GET http://%s/%d HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\n\r\n", origin, smallContent, origin)
		var done atomic.Int64
		var failed atomic.Pointer[error]
		begin := time.Now()
		var wg sync.WaitGroup
		for range clients {
			wg.Go(func() {
				w := webClient{addr: addr}
				defer w.end()
				for time.Since(begin) < *dur {
					if err := w.do(request, 0); err != nil {
						failed.Store(&err)
						return
					}
					if done.Add(1); fresh {
						w.end()
					}
				}
			})
		}
		wg.Wait()
		if err := failed.Load(); err != nil {
			return 0, *err
		}
		return float64(done.Load()) / time.Since(begin).Seconds(), nil
	}
}

// webWhole is the time of a request on a new connection, with its end, in milliseconds.
func webWhole(addr, origin string, pids []int) (float64, error) {
	n, err := webRate(1, true)(addr, origin, pids)
	return 1000 / n, err
}

// webFirstByte is the median time from the dial of a new connection to the first byte of
// the response, in milliseconds.
func webFirstByte(addr, origin string, _ []int) (float64, error) {
	request := fmt.Appendf(nil, "GET http://%s/%d HTTP/1.1\r\nHost: %s\r\n\r\n", origin, smallContent, origin)
	var took []float64
	for end := time.Now().Add(*dur); time.Now().Before(end); {
		begin := time.Now()
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return 0, err
		}
		c.SetDeadline(begin.Add(time.Minute))
		if _, err = c.Write(request); err == nil {
			_, err = c.Read(make([]byte, 4<<10))
		}
		took = append(took, time.Since(begin).Seconds()*1000)
		c.Close()
		if err != nil {
			return 0, err
		}
	}
	slices.Sort(took)
	return took[len(took)/2], nil
}

// webBulk is the speed of one large message.
func webBulk(up bool) func(addr, origin string, pids []int) (float64, error) {
	return func(addr, origin string, _ []int) (float64, error) {
		request, content := fmt.Sprintf("GET http://%s/%d HTTP/1.1\r\nHost: %s\r\n\r\n", origin, largeContent, origin), 0
		if up {
			content = largeContent
			request = fmt.Sprintf("PUT http://%s/ HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n", origin, origin, content)
		}
		w := webClient{addr: addr}
		defer w.end()
		begin := time.Now()
		err := w.do([]byte(request), content)
		return largeContent / (1 << 20) / time.Since(begin).Seconds(), err
	}
}

// webIdle is the memory that a kept connection costs, with that to the origin, in KiB.
func webIdle(addr, origin string, pids []int) (float64, error) {
	const connections = 300
	request := fmt.Appendf(nil, "GET http://%s/%d HTTP/1.1\r\nHost: %s\r\n\r\n", origin, smallContent, origin)
	before := rss(pids)
	for range connections {
		w := webClient{addr: addr}
		defer w.end()
		if err := w.do(request, 0); err != nil {
			return 0, err
		}
	}
	wait(2 * time.Second)
	return float64(rss(pids)-before) / connections, nil
}

var webWorks = []struct {
	name string
	run  func(addr, origin string, pids []int) (float64, error)
}{
	{"idle, KiB/connection", webIdle},
	{"requests/s, kept alive, 1 client", webRate(1, false)},
	{"requests/s, kept alive, 8 clients", webRate(8, false)},
	{"new connection to the first byte of the response, ms", webFirstByte},
	{"new connection with its response and its end, ms", webWhole},
	{"down, MiB/s", webBulk(false)},
	{"up, MiB/s", webBulk(true)},
}

// runHTTP compares proxies for plain HTTP, in interleaved rounds.
func runHTTP(ctx context.Context) error {
	web, err := startWeb()
	if err != nil {
		return err
	}
	defer web.Close()
	origin := web.Addr().String()
	table := map[string]map[string][]float64{}
	var names, works []string
	for _, w := range webWorks {
		works = append(works, w.name)
		table[w.name] = map[string][]float64{}
	}
	for round := range *rounds {
		for _, p := range proxies {
			if *only != "" && !slices.Contains(strings.Split(*only, ","), p.name) {
				continue
			}
			addr, r := origin, &running{stop: func() {}}
			if p.start != nil {
				if p.name != "ptgate" {
					if _, err := exec.LookPath(p.name); err != nil {
						log.Printf("%s is not installed", p.name)
						continue
					}
				}
				d, err := os.MkdirTemp(*dir, "http-")
				if err != nil {
					return err
				}
				if addr, _, err = twoPorts(); err != nil {
					return err
				}
				if r, err = p.start(ctx, d, addr); err != nil {
					return err
				}
			}
			if round == 0 {
				names = append(names, p.name)
			}
			for _, w := range webWorks {
				v, err := w.run(addr, origin, r.pids)
				if err != nil {
					r.stop()
					return fmt.Errorf("%s: %s: %w", p.name, w.name, err)
				}
				table[w.name][p.name] = append(table[w.name][p.name], v)
			}
			r.stop()
		}
		log.Printf("round %d of %d", round+1, *rounds)
	}
	printRows(table, names, works)
	return nil
}
