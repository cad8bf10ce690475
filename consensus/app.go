package consensus

import (
	"context"
	"fmt"
	"time"

	abci "github.com/cometbft/cometbft/abci/types"
)

// app is what the engine agrees for: a chain of one block with one transaction.
// No method returns an error, since the engine would not survive one.
type app struct {
	abci.BaseApplication
	ctx    context.Context
	config Config
}

// PrepareProposal is asked of a leader. The empty block that it answers when
// there is no candidate is refused by all, so the round passes.
func (a *app) PrepareProposal(context.Context, *abci.RequestPrepareProposal) (*abci.ResponsePrepareProposal, error) {
	block, err := a.candidate()
	if err != nil {
		a.config.Log.Warn("nothing to propose", "err", err)
		return &abci.ResponsePrepareProposal{}, nil
	}
	return &abci.ResponsePrepareProposal{Txs: [][]byte{block}}, nil
}

// candidate asks for a block for as long as the others wait for one.
func (a *app) candidate() ([]byte, error) {
	ctx, cancel := context.WithTimeout(a.ctx, a.config.Timeouts.Propose)
	defer cancel()
	type answer struct {
		block []byte
		err   error
	}
	c := make(chan answer, 1)
	go func() {
		block, err := a.propose(ctx)
		c <- answer{block, err}
	}()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case got := <-c:
		return got.block, got.err
	}
}

func (a *app) propose(ctx context.Context) (block []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("propose panicked: %v", r)
		}
	}()
	if block, err = a.config.Propose(ctx); err != nil {
		return nil, err
	}
	return block, a.config.accepts(block)
}

// ProcessProposal decides this replica's vote on a leader's block.
func (a *app) ProcessProposal(_ context.Context, r *abci.RequestProcessProposal) (*abci.ResponseProcessProposal, error) {
	if err := a.judge(r); err != nil {
		a.config.Log.Warn("block refused", "err", err)
		return &abci.ResponseProcessProposal{Status: abci.ResponseProcessProposal_REJECT}, nil
	}
	return &abci.ResponseProcessProposal{Status: abci.ResponseProcessProposal_ACCEPT}, nil
}

func (a *app) judge(r *abci.RequestProcessProposal) error {
	if r.Height != onlyHeight || len(r.Txs) != 1 || len(r.Misbehavior) != 0 {
		return malformed("%d transactions at height %d", len(r.Txs), r.Height)
	}
	return a.config.accepts(r.Txs[0])
}

// FinalizeBlock leaves the application hash as it was at genesis: with nothing
// new to show, the engine never begins another block.
func (a *app) FinalizeBlock(_ context.Context, r *abci.RequestFinalizeBlock) (*abci.ResponseFinalizeBlock, error) {
	results := make([]*abci.ExecTxResult, len(r.Txs))
	for i := range results {
		results[i] = &abci.ExecTxResult{}
	}
	return &abci.ResponseFinalizeBlock{TxResults: results, AppHash: appHash}, nil
}

// Commit completes the engine's view of an application.
func (a *app) Commit(context.Context) (*abci.ResponseCommit, error) {
	return &abci.ResponseCommit{}, nil
}

// Error completes the engine's view of an application.
func (a *app) Error() error { return nil }

// onlyHeight is the height of the one block.
const onlyHeight = 1

var (
	appHash     = []byte("bonafide")
	genesisTime = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
)
