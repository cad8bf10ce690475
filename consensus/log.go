package consensus

import (
	"context"
	"fmt"
	"log/slog"
	"slices"

	cmtlog "github.com/cometbft/cometbft/libs/log"
)

// chatter gives the engine's log to slog, a level or two down: what the engine
// calls an error is mostly a peer that is away.
type chatter struct {
	log  *slog.Logger
	with []any
}

func (c chatter) Debug(string, ...any) {} // every message of every peer

func (c chatter) Info(msg string, keyvals ...any) { c.emit(slog.LevelDebug, msg, keyvals) }

func (c chatter) Error(msg string, keyvals ...any) { c.emit(slog.LevelInfo, msg, keyvals) }

func (c chatter) With(keyvals ...any) cmtlog.Logger {
	return chatter{c.log, slices.Concat(c.with, keyvals)}
}

// emit writes values out as text: a handler must not walk the engine's own
// structures, which other goroutines change.
func (c chatter) emit(level slog.Level, msg string, keyvals []any) {
	if !c.log.Enabled(context.Background(), level) {
		return
	}
	args := slices.Concat(c.with, keyvals)
	for i, v := range args {
		args[i] = fmt.Sprint(v)
	}
	c.log.Log(context.Background(), level, "engine: "+msg, args...)
}
