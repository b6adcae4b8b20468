//go:build integration

package integration

import (
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// A palette is how a terminal shows what names no colours.
type palette struct {
	name             string
	text, background color.Gray
}

var palettes = []palette{
	{"light on dark", color.Gray{0xd3}, color.Gray{0x1e}},
	{"dark on light", color.Gray{0x2e}, color.Gray{0xf4}},
}

var colours = regexp.MustCompile(`\x1b\[([0-9;]*)m`)

// screenshot writes what a terminal of so many columns shows as a picture. Of characters it
// knows blocks; each other one is a bar. It takes colours of the table of 256 that are the
// same everywhere.
func screenshot(t *testing.T, text string, columns int, p palette) (file string) {
	t.Helper()
	const width, height = 6, 12 // of a character
	var rows [][]image.Image
	newRow := func() { rows = append(rows, nil) }
	newRow()
	fore, back := p.text, p.background
	for text != "" {
		if m := colours.FindStringSubmatchIndex(text); m != nil && m[0] == 0 {
			switch text[m[2]:m[3]] {
			case "0":
				fore, back = p.text, p.background
			case "38;5;231;48;5;16":
				fore, back = color.Gray{0xff}, color.Gray{0}
			default:
				t.Fatalf("the terminal does not know %q", text[:m[1]])
			}
			text = text[m[1]:]
			continue
		}
		r := []rune(text[:min(len(text), 4)])[0]
		text = text[len(string(r)):]
		if r == '\n' {
			newRow()
			continue
		}
		if r == '\r' {
			continue
		}
		if len(rows[len(rows)-1]) == columns {
			newRow()
		}
		c := image.NewGray(image.Rect(0, 0, width, height))
		draw.Draw(c, c.Rect, image.NewUniform(back), image.Point{}, draw.Src)
		glyph, known := map[rune]image.Rectangle{' ': {}, '█': c.Rect, '▀': image.Rect(0, 0, width, height/2), '▄': image.Rect(0, height/2, width, height)}[r]
		if !known {
			glyph = image.Rect(1, 3, 2, 10)
		}
		draw.Draw(c, glyph, image.NewUniform(fore), image.Point{}, draw.Src)
		rows[len(rows)-1] = append(rows[len(rows)-1], c)
	}
	all := image.NewGray(image.Rect(0, 0, columns*width, len(rows)*height))
	draw.Draw(all, all.Rect, image.NewUniform(p.background), image.Point{}, draw.Src)
	for y, row := range rows {
		for x, c := range row {
			draw.Draw(all, image.Rect(x*width, y*height, (x+1)*width, (y+1)*height), c, image.Point{}, draw.Src)
		}
	}
	file = filepath.Join(scratch(t), "screen.png")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := png.Encode(f, all); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return file
}

// onTerminal runs ptgate on a terminal, and returns what it writes there.
func (b *box) onTerminal(columns, rows int, args ...string) string {
	b.t.Helper()
	quoted := ptgate
	for _, a := range args {
		quoted += " " + strconv.Quote(a)
	}
	return b.env("script", "--quiet", "--return", "--command", fmt.Sprintf("stty columns %d rows %d && %s", columns, rows, quoted), "/dev/null")
}

// TestQR: a link and a bridge line, drawn on a terminal, are read from a picture of it, as
// a phone does, whether the terminal is light or dark. What does not fit is said.
func TestQR(t *testing.T) {
	server := newHome(t, "server")
	link := strings.TrimSpace(server.at("up", "-c", server.file, "--address", "198.51.100.7:8443", "--name", "first", "--no-start"))
	read := func(what, screen, want string, columns int) {
		t.Helper()
		for _, p := range palettes {
			file := screenshot(t, screen, columns, p)
			got, _, code := command(t, nil, "zbarimg", "--quiet", "--raw", "--set", "*.enable=0", "--set", "qrcode.enable=1", file)
			if code != 0 || strings.TrimSpace(got) != want {
				t.Errorf("%s, %s: zbarimg reads %q, and its code is %d; want %q", what, p.name, got, code, want)
			}
		}
	}
	find := func(screen string) string {
		t.Helper()
		return regexp.MustCompile(`ptgate://\S+`).FindString(screen)
	}
	screen := server.onTerminal(80, 40, "invite", "-c", server.file, "ann", "--qr")
	read("a link", screen, find(screen), 80)
	if strings.Contains(screen, "no QR code") || len(find(screen)) != len(link)-len("first")+len("ann") {
		t.Errorf("it says\n%s", screen)
	}
	screen = server.onTerminal(80, 40, "bridges", "-c", server.file, "--qr")
	read("a bridge line", screen, strings.TrimSpace(server.at("bridges", "-c", server.file)), 80)

	// What is piped has no colours: it is right where light is on dark.
	piped := server.at("bridges", "-c", server.file, "--qr")
	if strings.Contains(piped, "\x1b") {
		t.Error("a file has colours")
	}

	// More ways make it larger, up to where nothing fits.
	config, err := os.ReadFile(server.file)
	if err != nil {
		t.Fatal(err)
	}
	serve := regexp.MustCompile(`(?s)\[\[serve\]\].*?\n\n`).FindString(string(config))
	ways := func(n int) {
		t.Helper()
		text := string(config)
		for i := range n {
			text += strings.ReplaceAll(serve, "8443", strconv.Itoa(9000+i))
		}
		write(t, server.dir, filepath.Base(server.file), text)
	}
	ways(3)
	screen = server.onTerminal(80, 40, "invite", "-c", server.file, "bob", "--qr")
	if !strings.Contains(screen, "# no QR code: it is ") || !strings.Contains(screen, "this terminal has 80") || strings.Contains(screen, "█") || find(screen) == "" {
		t.Errorf("on a terminal that is too narrow:\n%s", screen)
	}
	screen = server.onTerminal(200, 24, "invite", "-c", server.file, "--again", "bob", "--qr")
	read("a link with four ways", screen, find(screen), 200)
	if !strings.Contains(screen, "lines high, and this terminal has 24") {
		t.Errorf("on a terminal that is too low:\n%s", screen)
	}
	ways(40)
	screen = server.onTerminal(200, 60, "invite", "-c", server.file, "eve", "--qr")
	if !strings.Contains(screen, "# no QR code: ") || !strings.Contains(screen, "2953") || find(screen) == "" {
		t.Errorf("a link that is too long:\n%s", screen)
	}
}
