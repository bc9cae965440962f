#!/usr/bin/env node
import { exitCode, report } from './exit';
import { run } from './program';

// A reader that has seen enough (`asa ... | head`) is no failure.
for (const stream of [process.stdout, process.stderr]) {
  stream.on('error', (error: NodeJS.ErrnoException) => {
    process.exit(error.code === 'EPIPE' ? exitCode.ok : exitCode.failure);
  });
}
for (const event of ['uncaughtException', 'unhandledRejection'] as const) {
  process.on(event, async (error) => process.exit(await report(error)));
}

process.exitCode = await run(process.argv.slice(2));
