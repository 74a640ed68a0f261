package smtp

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// maxAuthRounds bounds the challenges of one exchange; no mechanism in use needs
// more than four.
const maxAuthRounds = 16

// Auth runs a SASL exchange (RFC 4954). The error is a *StageError: the server's
// refusal in Reply, after which the connection may go on, or trouble in Err. When
// mech gives up, the exchange is cancelled and Err is what mech said. Where the server repeats
// what it was given, this and each later refusal is Masked.
func (c *Client) Auth(ctx context.Context, mech SASL) error {
	defer c.watch(ctx)()
	name, response, err := mech.Start()
	if err != nil {
		return &StageError{Stage: StageAuth, Err: fmt.Errorf("start: %w", err)}
	}
	if !isMechanism(name) {
		return &StageError{Stage: StageAuth, Err: fmt.Errorf("%q is no mechanism", name)}
	}
	number := 0
	if response != nil {
		c.keep(name, number, response)
		number++
	}
	line, response := authCommand(name, response)
	reply, err := c.command(ctx, StageAuth, line)
	for round := 0; err == nil && reply.Code == codeChallenge; round++ {
		if round == maxAuthRounds {
			return c.cancelAuth(ctx, errors.New("too many challenges"))
		}
		if response, err = c.answer(mech, reply.Text, response); err != nil {
			return c.cancelAuth(ctx, err)
		}
		c.keep(name, number, response)
		number++
		reply, err = c.command(ctx, StageAuth, base64.StdEncoding.EncodeToString(response))
		response = nil
	}
	if err != nil {
		return err
	}
	if !reply.IsPositive() {
		return c.refused(ctx, StageAuth, reply)
	}
	c.authenticated = true
	return nil
}

// authCommand makes the AUTH line. An initial response that makes it too long is
// returned, for the first, empty challenge (RFC 4954 section 4).
func authCommand(name string, initial []byte) (line string, later []byte) {
	switch {
	case initial == nil:
		return "AUTH " + name, nil
	case len(initial) == 0:
		return "AUTH " + name + " =", nil
	}
	line = "AUTH " + name + " " + base64.StdEncoding.EncodeToString(initial)
	if len(line)+2 > MaxAuthLine {
		return "AUTH " + name, initial
	}
	return line, nil
}

// answer gives the response to a challenge: the initial one when it is still to be
// sent, else that of mech.
func (c *Client) answer(mech SASL, challenge string, initial []byte) ([]byte, error) {
	decoded, err := base64.StdEncoding.DecodeString(challenge)
	if err != nil {
		return nil, malformed("challenge is not base64", c.Masked(challenge))
	}
	if initial != nil && len(decoded) == 0 {
		return initial, nil
	}
	response, err := mech.Next(decoded)
	if err != nil {
		return nil, fmt.Errorf("challenge: %w", err)
	}
	return response, nil
}

// cancelAuth ends an exchange that our side gives up (RFC 4954 section 4).
func (c *Client) cancelAuth(ctx context.Context, cause error) error {
	reply, err := c.command(ctx, StageAuth, "*")
	if err != nil {
		return err
	}
	if !reply.IsPermanent() && !reply.IsTemporary() {
		return c.outOfStep(ctx, StageAuth, reply)
	}
	return &StageError{Stage: StageAuth, Err: cause}
}

// isMechanism checks the grammar of a mechanism's name (RFC 4422 section 3.1).
func isMechanism(name string) bool {
	return name != "" && len(name) <= 20 && !strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
	})
}
