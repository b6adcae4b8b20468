package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"rsc.io/qr"
)

const (
	// quiet is the margin of a QR code that readers want, in modules.
	quiet = 4
	// maxQR is how many bytes of a link the largest QR code has room for.
	maxQR = 2953
	// whiteOnBlack are colours of xterm's table of 256 that no theme changes.
	whiteOnBlack, noColours = "\x1b[38;5;231;48;5;16m", "\x1b[0m"
)

// drawQR draws text as a QR code, two rows of modules a line. What is light is drawn. On a
// terminal it has colours of its own: by the terminal's own it is the wrong way round where
// these are dark on light. If it does not fit, drawQR says so; again is the command for
// another try.
func drawQR(cmd *cobra.Command, text, again string) {
	out, columns, lines := cmd.OutOrStdout(), 0, 0
	if isTerminal(out) {
		if w, h, err := term.GetSize(int(out.(descriptor).Fd())); err == nil && w > 0 && h > 0 {
			columns, lines = w, h
		}
	}
	code, err := qr.Encode(text, qr.L)
	if err != nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "# no QR code: %d bytes are too many, the largest has room for %d. Send the text itself, or serve fewer ways\n", len(text), maxQR)
		return
	}
	picture := picture(code)
	width, height := code.Size+2*quiet, len(picture)
	if columns > 0 && width > columns {
		fmt.Fprintf(cmd.ErrOrStderr(), "# no QR code: it is %d columns wide, and this terminal has %d. In a larger window, or with smaller letters:  %s\n", width, columns, again)
		return
	}
	for _, line := range picture {
		if columns > 0 && takesCommands(out) {
			line = whiteOnBlack + line + noColours
		}
		io.WriteString(out, line+"\n")
	}
	if height > lines && lines > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "# the QR code is %d lines high, and this terminal has %d: make the window larger or the letters smaller, so that all of it shows\n", height, lines)
	}
}

// picture is the lines of a QR code with its margin.
func picture(code *qr.Code) (lines []string) {
	for y := -quiet; y < code.Size+quiet; y += 2 {
		var b strings.Builder
		for x := -quiet; x < code.Size+quiet; x++ {
			switch upper, lower := code.Black(x, y), code.Black(x, y+1); {
			case upper && lower:
				b.WriteString(" ")
			case upper:
				b.WriteString("▄")
			case lower:
				b.WriteString("▀")
			default:
				b.WriteString("█")
			}
		}
		lines = append(lines, b.String())
	}
	return lines
}
