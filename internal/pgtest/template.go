package pgtest

import (
	"context"
	"fmt"
	"os"
	"sync"

	"github.com/jackc/pgx/v5"

	"postern/internal/pgserver"
	"postern/migrations"
)

// shared is the server of all tests of this process.
var shared = sync.OnceValues(func() (cluster, error) {
	if address := os.Getenv("POSTERN_TEST_DATABASE_URL"); address != "" {
		return newCluster(address)
	}
	dir, err := place()
	if err != nil {
		return cluster{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	server, err := pgserver.Start(ctx, pgserver.Config{
		Dir:       dir,
		Unsafe:    true,
		Temporary: true,
		Settings:  map[string]string{"max_connections": "400"},
	})
	if err != nil {
		return cluster{}, err
	}
	return newCluster(server.URL())
})

// bare is the template of a database without a schema.
func bare(context.Context, cluster) (string, error) { return "template0", nil }

// sharedSchema is schema on the shared server, looked for once.
func sharedSchema(context.Context, cluster) (string, error) {
	return sharedTemplate()
}

var sharedTemplate = sync.OnceValues(func() (string, error) {
	c, err := shared()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return schema(ctx, c)
})

// templateLock is the advisory lock, in the server's first database, of whoever
// looks for the template or makes it.
const templateLock int64 = 0x706774657374 // "pgtest"

// schema returns the template that has the schema, and makes it when it is
// missing. Its name changes with the migrations, so that several checkouts can
// share a server.
func schema(ctx context.Context, c cluster) (name string, err error) {
	fingerprint, err := migrations.Fingerprint()
	if err != nil {
		return "", err
	}
	name = "postern_template_" + fingerprint[:16]
	err = c.run(ctx, c.admin, func(conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, `select pg_advisory_lock($1)`, templateLock); err != nil {
			return err
		}
		var exists bool
		err := conn.QueryRow(ctx, `select exists (select from pg_database where datname = $1)`, name).Scan(&exists)
		if err != nil || exists {
			return err
		}
		return c.build(ctx, conn, name)
	})
	if err != nil {
		return "", fmt.Errorf("make template: %w", err)
	}
	return name, nil
}

// build makes the template under another name first, so that an interrupted one
// is never taken for whole.
func (c cluster) build(ctx context.Context, conn *pgx.Conn, name string) error {
	unfinished := name + "_new"
	if err := c.drop(ctx, unfinished); err != nil {
		return err
	}
	if err := c.create(ctx, unfinished, "template0"); err != nil {
		return err
	}
	err := c.run(ctx, c.databaseURL(unfinished), func(conn *pgx.Conn) error {
		return migrations.Apply(ctx, conn, nil)
	})
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, fmt.Sprintf("alter database %s rename to %s", unfinished, name))
	return err
}
