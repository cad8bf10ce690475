package boltstore

import (
	"cmp"
	"context"
	"runtime"
	"sync"
	"sync/atomic"
)

// snapshot is one moment of the file, with a reader for each processor.
type snapshot []*reader

// snapshot begins as many transactions of the same moment as there are
// processors.
func (s *Store) snapshot() (rs snapshot, err error) {
	err = guard(func() error {
		for rs == nil {
			if rs, err = s.beginAll(runtime.GOMAXPROCS(0)); err != nil {
				return err
			}
			if !rs.same() { // something was written meanwhile
				rs.close()
				rs = nil
			}
		}
		return nil
	})
	return rs, err
}

func (s *Store) beginAll(n int) (rs snapshot, err error) {
	for range n {
		tx, err := s.begin(false)
		if err != nil {
			rs.close()
			return nil, err
		}
		rs = append(rs, &reader{tx: tx})
	}
	return rs, nil
}

func (rs snapshot) same() bool {
	for _, r := range rs {
		if r.tx.ID() != rs[0].tx.ID() {
			return false
		}
	}
	return true
}

func (rs snapshot) close() {
	for _, r := range rs {
		_ = r.tx.Rollback() // of a read transaction: it ends
	}
}

// init reads the state of the moment for all.
func (rs snapshot) init() error {
	return guard(func() error {
		for _, r := range rs {
			if err := r.init(); err != nil {
				return err
			}
		}
		return nil
	})
}

// each calls fn, guarded, with each i from 0 to n-1, on all processors at once,
// until one call returns an error.
func (rs snapshot) each(ctx context.Context, n int, fn func(r *reader, i int) error) error {
	errs := make([]error, min(n, len(rs)))
	var next atomic.Int64
	var wg sync.WaitGroup
	for k := range errs {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(n) && errs[k] == nil; i = next.Add(1) - 1 {
				if errs[k] = ctx.Err(); errs[k] == nil {
					errs[k] = guard(func() error { return fn(rs[k], int(i)) })
				}
			}
			if errs[k] != nil {
				next.Store(int64(n))
			}
		})
	}
	wg.Wait()
	return cmp.Or(errs...)
}
