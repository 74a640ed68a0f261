package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"postern/cmd/postern/screen"
	"postern/relay/keyring"
	"postern/relay/seal"
)

func (a *app) keyCmd() *cobra.Command {
	return noun("key", "manage the keys that seal secrets in the database", a.keyListCmd(), a.keyRotateCmd(), a.keyUseCmd(), a.keyRemoveCmd())
}

// presentKeys are those of this machine's file, nil if it is not there.
func (a *app) presentKeys() (sealer *seal.Sealer, path string, err error) {
	cfg, _, err := a.source.Load()
	if err != nil {
		return nil, "", err
	}
	sealer, err = a.source.PresentSealer(cfg)
	return sealer, a.source.SecretKeyPath(cfg), err
}

// sealingKeys are those of this machine's file, made if it is not there, as the database has them now.
func (a *app) sealingKeys(ctx context.Context, pool *pgxpool.Pool) (*seal.Sealer, error) {
	cfg, _, err := a.source.Load()
	if err != nil {
		return nil, err
	}
	sealer, err := a.source.Sealer(cfg)
	if err != nil {
		return nil, err
	}
	return sealer, keyring.Follow(ctx, pool, sealer)
}

// onKeys makes the RunE of a command on them, with the KEY that is named.
func (a *app) onKeys(do func(ctx context.Context, keys *keyring.Admin, id string) error) func(*cobra.Command, []string) error {
	return a.onUsers(func(ctx context.Context, users *accounts, args []string) error {
		sealer, path, err := a.presentKeys()
		if err != nil {
			return err
		}
		if sealer == nil {
			return fmt.Errorf("%s does not exist: copy it from another node; on the only node, it is created when first needed", path)
		}
		return do(ctx, &keyring.Admin{Pool: users.pool, Sealer: sealer, Actor: users.actor}, strings.Join(args, ""))
	})
}

func (a *app) keyListCmd() *cobra.Command {
	return listing[keyring.Key]{
		head: []string{"KEY", "STATE", "SINCE", "VALUES", "NODES"},
		row: func(k keyring.Key) []string {
			return []string{k.ID, k.State, screen.Moment(k.Since), strconv.Itoa(k.Values), screen.OrDash(strings.Join(k.Nodes, ", "))}
		},
		load: func(ctx context.Context, users *accounts, _ []string, _ int) ([]keyring.Key, error) {
			sealer, _, err := a.presentKeys()
			if err == nil && sealer == nil {
				sealer, err = seal.New() // no key: all are missing
			}
			if err != nil {
				return nil, err
			}
			v, err := keyring.Read(ctx, users.pool, sealer)
			if err != nil {
				return nil, err
			}
			return v.Keys, nil
		},
	}.command(a, &cobra.Command{
		Use:   "list",
		Short: "list the sealing keys, what each still seals, and which nodes have it",
		Long: `Lists the keys in this machine's file, and those that are missing there: which one
seals, since when, how many values in the database each has sealed, and which running
nodes have it.`,
		Args: noArguments,
	})
}

func (a *app) keyRotateCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "rotate",
		Short: "add a new sealing key to this machine's file",
		Long: `Writes a new key into secret_key_file, beside the others, and says what to do next: copy
the file to the other nodes, then 'postern key use'. Until then, nothing is sealed with
it. Running the command again adds no further key.`,
		Args: noArguments,
		RunE: a.onKeys(func(ctx context.Context, keys *keyring.Admin, _ string) error {
			id, added, err := keys.Rotate(ctx)
			if err != nil {
				return err
			}
			said := "added key %[1]s; nothing is sealed with it yet"
			if !added {
				said = "key %[1]s was added before and is not in use; no other is added"
			}
			_, err = fmt.Fprintf(a.stdout, said+"\nto do: copy secret_key_file to the other nodes, if there are any; when 'postern key list' names them beside it, a few seconds later, 'postern key use %[1]s'\n", id)
			return err
		}),
	}
}

func (a *app) keyUseCmd() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "use KEY",
		Short: "seal with another key, on all nodes",
		Long: `Makes a key of this machine's file the current one. The nodes seal with it within
seconds, and re-seal what the previous key sealed. The command fails while a running
node lacks the key.`,
		Args: one("KEY", "the key's ID, from 'postern key list'"),
		RunE: a.onKeys(func(ctx context.Context, keys *keyring.Admin, id string) error {
			if err := keys.Use(ctx, id, force); err != nil {
				return err
			}
			v, err := keyring.Read(ctx, keys.Pool, keys.Sealer)
			if err != nil {
				return err
			}
			left := 0
			for _, k := range v.Keys {
				if k.ID != id {
					left += k.Values
				}
			}
			_, err = fmt.Fprintf(a.stdout, "key %s is now current; left to re-seal: %s, which running nodes do within seconds ('postern key list')\n"+
				"to do: 'postern key remove' with the former key, from %s on\n", id, screen.Count(left, "value"), screen.LocalTime(time.Now().Add(keyring.KeptFor)))
			return err
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "use it even if a running node lacks the key, and so cannot open what it seals")
	return cmd
}

func (a *app) keyRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "remove KEY",
		Short: "remove a key that seals nothing from this machine's file",
		Long: `Removes a key from secret_key_file, at the earliest an hour after another one came into
use. The command fails while the key seals anything, and while a running node lacks the
current key. Older database backups still need the old file.`,
		Args: one("KEY", "the key's ID, from 'postern key list'"),
		RunE: a.onKeys(func(ctx context.Context, keys *keyring.Admin, id string) error {
			if err := keys.Remove(ctx, id); err != nil {
				return err
			}
			_, err := fmt.Fprintf(a.stdout, "removed key %s from this machine's file\nto do: copy secret_key_file to the other nodes, which go on without the key within seconds; 'postern key list' names those that still have it\n", id)
			return err
		}),
	}
}
