package cmd

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"unicode"

	"golang.org/x/term"
)

// printer keeps the two streams apart: results on out, commentary on err. It
// may be used concurrently.
type printer struct {
	mu          sync.Mutex
	out, err    io.Writer
	json, quiet bool
	bar         bool // a progress bar has been drawn since the last line
}

func newPrinter(out, err io.Writer) *printer { return &printer{out: out, err: err} }

// messageTypes are the types of messages that are no item, by kind: an item is
// about one of the things that a command was asked for.
var messageTypes = map[string]string{
	"replica": "status", "check": "status", "serving": "status", "ready": "status", "phase": "status",
	"progress": "status", "behind": "status", "warning": "status",
	"summary": "summary", "listing": "summary", "history": "summary", "audit": "summary", "members": "summary",
	"bench": "summary",
	"error": "error",
}

// result prints a result: in JSON mode the message, otherwise the line. v's first
// field must be its kind.
func (p *printer) result(v any, format string, args ...any) error {
	if p.json {
		return p.line(p.out, encode(v))
	}
	return p.line(p.out, plain(fmt.Sprintf(format, args...)))
}

// message prints v in JSON mode only.
func (p *printer) message(v any) error {
	if !p.json {
		return nil
	}
	return p.line(p.out, encode(v))
}

// say prints commentary, for people only.
func (p *printer) say(format string, args ...any) {
	if p.quiet || p.json {
		return
	}
	for l := range strings.SplitSeq(fmt.Sprintf(format, args...), "\n") {
		_ = p.line(p.err, plain(l))
	}
}

// warn prints what a user must not miss.
func (p *printer) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if p.json {
		_ = p.line(p.err, encode(struct {
			Kind    string `json:"kind"`
			Message string `json:"message"`
		}{"warning", text}))
		return
	}
	_ = p.line(p.err, plain("bonafide: warning: "+text))
}

// fail prints the error and its hint and returns the exit status.
func (p *printer) fail(err error) int {
	status := exitStatus(err)
	if err == nil || errors.As(err, new(*silentError)) {
		return status
	}
	hint := hintOf(err)
	if p.json {
		_ = p.line(p.err, encode(struct {
			Kind    string `json:"kind"`
			Status  int    `json:"status"`
			Message string `json:"message"`
			Hint    string `json:"hint,omitempty"`
		}{"error", status, err.Error(), hint}))
		return status
	}
	_ = p.line(p.err, plain("bonafide: "+oneLine(err.Error())))
	if hint != "" {
		_ = p.line(p.err, plain("bonafide: hint: "+oneLine(hint)))
	}
	return status
}

// stderr is the commentary's stream for others to write to.
func (p *printer) stderr() io.Writer { return lockedWriter{p} }

type lockedWriter struct{ p *printer }

func (w lockedWriter) Write(b []byte) (int, error) {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	return w.p.err.Write(b)
}

func (p *printer) line(w io.Writer, s string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar { // it is drawn anew below the line
		p.bar = false
		if _, err := io.WriteString(p.err, "\r"+strings.Repeat(" ", max(0, terminalWidth(p.err)-1))+"\r"); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, s+"\n")
	return err
}

// barWriter is where a progress bar is drawn.
type barWriter struct{ p *printer }

func (w barWriter) Write(b []byte) (int, error) {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	w.p.bar = true
	return w.p.err.Write(b)
}

func encode(v any) string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic("cmd: encode message: " + err.Error())
	}
	return typed(strings.TrimSuffix(b.String(), "\n"))
}

// typed puts the type of a message before its kind. Other JSON stays as it is.
func typed(text string) string {
	after, ok := strings.CutPrefix(text, `{"kind":"`)
	if !ok {
		return text
	}
	kind, _, _ := strings.Cut(after, `"`)
	return `{"message_type":"` + cmp.Or(messageTypes[kind], "item") + `",` + text[1:]
}

// oneLine joins the lines of an error.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' }), "; ")
}

// plain returns s with everything escaped that could steer a terminal or
// reorder what stands on it: replicas, files and other people choose parts of
// what is printed.
func plain(s string) string {
	if strings.IndexFunc(s, unprintable) < 0 && strings.ToValidUTF8(s, "") == s {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == unicode.ReplacementChar && !strings.HasPrefix(s[i:], "\uFFFD"):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unprintable(r):
			q := strconv.QuoteRuneToASCII(r)
			b.WriteString(q[1 : len(q)-1])
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func unprintable(r rune) bool { return r != '\t' && !unicode.IsPrint(r) }

// quote returns a name or file name as it stands in a sentence.
func quote[T ~string](s T) string {
	if s == "" || strings.ContainsAny(string(s), " \t'\"\\") || strings.IndexFunc(string(s), unprintable) >= 0 {
		return strconv.Quote(string(s))
	}
	return string(s)
}

// count returns a number of things in words.
func count(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// isTerminal reports whether a stream is a terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// terminalWidth returns how many columns a stream that is a terminal has, 0 if it
// is none.
func terminalWidth(stream any) int {
	f, ok := stream.(*os.File)
	if !ok {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// red is a colour: ECMA-48, SGR.
const red = "31"

// coloured returns text in a colour, if results go to a terminal whose user does
// not mind (no-color.org).
func (p *printer) coloured(colour, text string) string {
	if !isTerminal(p.out) || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}
