package client

import (
	"context"
	"time"
)

// outcome is what came of asking one replica where any one will do.
type outcome[T any] struct {
	i   int
	val T
	err error
}

// contest is one run of first.
type contest[T any] struct {
	ctx     context.Context
	ask     func(context.Context, *replica) (T, error)
	rs      []*replica
	done    chan outcome[T]
	cancels []context.CancelFunc
}

// first asks the replicas in their order, the next one when the one before has
// failed or taken longer than hedge, and returns the first success and whose it
// is. Its context goes on until ctx ends; the others' are cancelled, and what
// they still bring is dropped.
func first[T any](ctx context.Context, rs []*replica, ask func(context.Context, *replica) (T, error), drop func(T)) (T, *replica, error) {
	c := &contest[T]{ctx: ctx, ask: ask, rs: rs, done: make(chan outcome[T], len(rs))}
	errs := make(map[uint32]error)
	timer := time.NewTimer(hedge)
	defer timer.Stop()
	c.start()
	for len(errs) < len(rs) {
		select {
		case o := <-c.done:
			if o.err == nil {
				go c.end(o.i, len(c.cancels)-len(errs)-1, drop)
				return o.val, rs[o.i], nil
			}
			errs[rs[o.i].ID] = o.err
			c.start()
			timer.Reset(hedge)
		case <-timer.C:
			c.start()
			timer.Reset(hedge)
		}
	}
	c.cancel(-1)
	var none T
	return none, nil, &NoQuorumError{Need: 1, Replicas: errs}
}

// start asks the next replica, if there is one.
func (c *contest[T]) start() {
	i := len(c.cancels)
	if i == len(c.rs) {
		return
	}
	ctx, cancel := context.WithCancel(c.ctx)
	c.cancels = append(c.cancels, cancel)
	go func() {
		val, err := c.ask(ctx, c.rs[i])
		c.done <- outcome[T]{i, val, err}
	}()
}

func (c *contest[T]) cancel(winner int) {
	for i, cancel := range c.cancels {
		if i != winner {
			cancel()
		}
	}
}

// end cancels all but the winner and drops what the others still bring.
func (c *contest[T]) end(winner, running int, drop func(T)) {
	c.cancel(winner)
	for range running {
		if o := <-c.done; o.err == nil {
			drop(o.val)
		}
	}
}
