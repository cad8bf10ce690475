package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/spf13/viper"
)

// An add, and a get into files, go on; what a get wrote to the standard output is gone.
func TestGoesOn(t *testing.T) {
	for _, tt := range []struct {
		command string
		args    []string
		want    bool
	}{
		{"add", nil, true}, {"get", nil, false}, {"get", []string{"-o", "-"}, false},
		{"get", []string{"-o", "file"}, true}, {"get", []string{"-r"}, true}, {"ls", nil, false},
	} {
		a := &app{printer: newPrinter(io.Discard, io.Discard), v: viper.New()}
		c, _, err := a.rootCommand().Find([]string{tt.command})
		if err == nil {
			err = c.ParseFlags(tt.args)
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := goesOn(c); got != tt.want {
			t.Errorf("%s %q: %t", tt.command, tt.args, got)
		}
	}
	if goesOn(nil) {
		t.Error("no command goes on")
	}
}

// What an interrupt ended is said without the words of a context.
func TestInterruptedError(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{context.Canceled, "interrupted"},
		{fmt.Errorf("add x: 3 files not added: %w", context.Canceled), "interrupted: add x: 3 files not added"},
		{errors.New("disk full"), "interrupted: disk full"},
	} {
		err := &interruptedError{tt.err}
		if err.Error() != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("got %q, want %q", err, tt.want)
		}
	}
}
