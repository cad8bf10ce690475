package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// A busy TPM answers with each of its codes in turn, and then goes on to the next.
type busy struct {
	codes []tpm2.TPMRC
	asked int
}

func (b *busy) Send([]byte) ([]byte, error) {
	rc := b.codes[min(b.asked, len(b.codes)-1)]
	b.asked++
	return binary.BigEndian.AppendUint32([]byte{0x80, 1, 0, 0, 0, 10}, uint32(rc)), nil
}

// A TPM that has not begun is asked again, and no other: what it has done or
// refused is not done twice.
func TestPatience(t *testing.T) {
	for _, c := range []struct {
		name  string
		codes []tpm2.TPMRC
		asked int
		err   error
	}{
		{"ready", []tpm2.TPMRC{tpm2.TPMRCSuccess}, 1, nil},
		{"busy at first", []tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate, tpm2.TPMRCSuccess}, 5, nil},
		{"refusal", []tpm2.TPMRC{tpm2.TPMRCNVLocked}, 1, nil},
		{"lockout", []tpm2.TPMRC{tpm2.TPMRCLockout}, 1, nil},
		{"busy for good", []tpm2.TPMRC{tpm2.TPMRCRetry}, 37, context.DeadlineExceeded},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				b, began := &busy{codes: c.codes}, time.Now()
				_, err := patient{ctx, b}.Send(nil)
				if !errors.Is(err, c.err) || b.asked != c.asked || time.Since(began) > patience {
					t.Errorf("got %v after %d times and %v, want %v after %d", err, b.asked, time.Since(began), c.err, c.asked)
				}
			})
		})
	}
}
