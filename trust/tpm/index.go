package tpm

import (
	"bytes"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/bonafide-archive/bonafide/trust"
)

const counterSize = 8

// policy is who may do what with an index: anyone may lock it, always, and
// command may write it.
type policy struct {
	lock, write tpm2.TPM2BDigest // branches
	command     tpm2.TPMCC
	boot        *condition // of writers
}

func newPolicy(command tpm2.TPMCC, boot *condition) (policy, error) {
	lock, err := branch(tpm2.TPMCCNVWriteLock, nil)
	if err != nil {
		return policy{}, err
	}
	write, err := branch(command, boot)
	return policy{lock: lock, write: write, command: command, boot: boot}, err
}

// branch is the digest of PolicyCommandCode(command), after the condition's
// PolicyAuthorize if there is one: profile lock sets writers no condition but the
// lock.
func branch(command tpm2.TPMCC, boot *condition) (tpm2.TPM2BDigest, error) {
	return digest(boot.branch, tpm2.PolicyCommandCode{Code: command}.Update)
}

func digest(updates ...func(*tpm2.PolicyCalculator) error) (tpm2.TPM2BDigest, error) {
	p, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return tpm2.TPM2BDigest{}, err
	}
	for _, update := range updates {
		if err := update(p); err != nil {
			return tpm2.TPM2BDigest{}, err
		}
	}
	return tpm2.TPM2BDigest{Buffer: p.Hash().Digest}, nil
}

func (p policy) or() tpm2.PolicyOr {
	return tpm2.PolicyOr{PHashList: tpm2.TPMLDigest{Digests: []tpm2.TPM2BDigest{p.lock, p.write}}}
}

// digest is the authPolicy of an index under p.
func (p policy) digest() (tpm2.TPM2BDigest, error) { return digest(p.or().Update) }

// session proves to the TPM that p allows command. It ends with the command.
func (p policy) session(command tpm2.TPMCC) tpm2.Session {
	return tpm2.Policy(tpm2.TPMAlgSHA256, 16,
		func(c transport.TPM, h tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
			if command != tpm2.TPMCCNVWriteLock {
				if err := p.boot.authorize(c, h); err != nil {
					return err
				}
			}
			return p.finish(c, h, command)
		})
}

// finish names the command to the policy session h, and then both branches.
func (p policy) finish(c transport.TPM, h tpm2.TPMISHPolicy, command tpm2.TPMCC) error {
	if _, err := (tpm2.PolicyCommandCode{PolicySession: h, Code: command}).Execute(c); err != nil {
		return err
	}
	or := p.or()
	or.PolicySession = h
	_, err := or.Execute(c)
	return err
}

// index is an NV index as the TPM shows it at the moment. Its name changes with
// its lock, and authorisations cover the name: look again before each change.
type index struct {
	public *tpm2.TPMSNVPublic
	area   []byte // the bytes of public
	name   tpm2.TPM2BName
}

func lookIndex(c transport.TPM, h tpm2.TPMHandle) (index, error) {
	rsp, err := tpm2.NVReadPublic{NVIndex: h}.Execute(c)
	if err != nil {
		return index{}, fmt.Errorf("index %#x: %w", uint32(h), err)
	}
	public, err := rsp.NVPublic.Contents()
	if err != nil {
		return index{}, fmt.Errorf("index %#x: %w", uint32(h), err)
	}
	return index{public: public, area: bytes.Clone(rsp.NVPublic.Bytes()), name: rsp.NVName}, nil
}

func (x index) named() tpm2.NamedHandle {
	return tpm2.NamedHandle{Handle: x.public.NVIndex, Name: x.name}
}

func (x index) with(s tpm2.Session) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: x.public.NVIndex, Name: x.name, Auth: s}
}

// withPassword is the authorisation to read: the index's own, empty one.
func (x index) withPassword() tpm2.AuthHandle { return x.with(tpm2.PasswordAuth(nil)) }

func writeSlots(c transport.TPM, s trust.Slots, boot *condition) error {
	return writeIndex(c, SlotsIndex, s.Bytes(), boot)
}

func writeIndex(c transport.TPM, h tpm2.TPMHandle, b []byte, boot *condition) error {
	x, s, err := open(c, h, tpm2.TPMCCNVWrite, boot)
	if err != nil {
		return err
	}
	_, err = tpm2.NVWrite{
		AuthHandle: x.with(s), NVIndex: x.named(),
		Data: tpm2.TPM2BMaxNVBuffer{Buffer: b},
	}.Execute(c)
	return err
}

func increment(c transport.TPM, boot *condition) error {
	x, s, err := open(c, CounterIndex, tpm2.TPMCCNVIncrement, boot)
	if err != nil {
		return err
	}
	_, err = tpm2.NVIncrement{AuthHandle: x.with(s), NVIndex: x.named()}.Execute(c)
	return err
}

// open looks at the index and makes a session that may write it with command.
func open(c transport.TPM, h tpm2.TPMHandle, command tpm2.TPMCC, boot *condition) (index, tpm2.Session, error) {
	x, err := lookIndex(c, h)
	if err != nil {
		return index{}, nil, err
	}
	if x.public.Attributes.WriteLocked {
		return index{}, nil, trust.ErrMode
	}
	p, err := newPolicy(command, boot)
	return x, p.session(command), err
}

func lockWrites(c transport.TPM, h tpm2.TPMHandle, boot *condition) error {
	x, err := lookIndex(c, h)
	if err != nil || x.public.Attributes.WriteLocked {
		return err
	}
	p, err := newPolicy(writer(h), boot)
	if err != nil {
		return err
	}
	_, err = tpm2.NVWriteLock{
		AuthHandle: x.with(p.session(tpm2.TPMCCNVWriteLock)), NVIndex: x.named(),
	}.Execute(c)
	return err
}

// writer is the command that the policy of index h lets write.
func writer(h tpm2.TPMHandle) tpm2.TPMCC {
	if h == CounterIndex {
		return tpm2.TPMCCNVIncrement
	}
	return tpm2.TPMCCNVWrite
}

func lockReads(c transport.TPM, h tpm2.TPMHandle) error {
	x, err := lookIndex(c, h)
	if err != nil || x.public.Attributes.ReadLocked {
		return err
	}
	_, err = tpm2.NVReadLock{AuthHandle: x.withPassword(), NVIndex: x.named()}.Execute(c)
	return err
}

func readIndex(c transport.TPM, h tpm2.TPMHandle, size uint16) ([]byte, error) {
	x, err := lookIndex(c, h)
	if err != nil {
		return nil, err
	}
	rsp, err := tpm2.NVRead{AuthHandle: x.withPassword(), NVIndex: x.named(), Size: size}.Execute(c)
	if err != nil {
		return nil, err
	}
	if len(rsp.Data.Buffer) != int(size) {
		return nil, fmt.Errorf("index %#x: %d bytes, want %d", uint32(h), len(rsp.Data.Buffer), size)
	}
	return rsp.Data.Buffer, nil
}
