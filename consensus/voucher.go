package consensus

import (
	"crypto/ed25519"
	"errors"
)

const voucherName = "bonafide/voucher/v1\n"

// ErrSignature is returned for a voucher that its voter's key did not sign.
var ErrSignature = errors.New("voucher signature does not verify")

// Voucher is Voter's word that it holds, on its disk, the whole body that
// Replica's join describes, and that it accepts no other from it in this attempt.
type Voucher struct {
	Instance       [32]byte
	Voter, Replica uint32
	Join           [32]byte // the join's digest
	Signature      [64]byte // by Voter's agreement key over what stands before it
}

// SignVoucher makes voter's voucher for the join of replica.
func SignVoucher(key ed25519.PrivateKey, inst [32]byte, voter, replica uint32, join [32]byte) Voucher {
	v := Voucher{Instance: inst, Voter: voter, Replica: replica, Join: join}
	copy(v.Signature[:], ed25519.Sign(key, v.signed()))
	return v
}

// Verify returns ErrSignature unless the holder of key's private half signed v.
func (v Voucher) Verify(key ed25519.PublicKey) error {
	if len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, v.signed(), v.Signature[:]) {
		return ErrSignature
	}
	return nil
}

// "bonafide/voucher/v1\n" || instance || be32 voter || be32 replica || join digest
func (v Voucher) signed() []byte {
	w := newWriter(voucherName)
	w.instance(v.Instance)
	w.replica(v.Voter)
	w.replica(v.Replica)
	w.raw(v.Join[:])
	return w.b
}

// Bytes is the voucher's one encoding.
func (v Voucher) Bytes() []byte { return append(v.signed(), v.Signature[:]...) }

// ParseVoucher accepts exactly what Bytes returns; it checks no signature.
func ParseVoucher(b []byte) (Voucher, error) {
	r := newReader(voucherName, b)
	v := Voucher{Instance: r.hash(), Voter: r.u32(), Replica: r.u32(), Join: r.hash()}
	copy(v.Signature[:], r.take(len(v.Signature)))
	if err := r.end(); err != nil {
		return Voucher{}, err
	}
	return v, nil
}
