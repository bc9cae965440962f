// `npm start` and `npm test`, from a clean clone: install, build, run.
// Plain Node, because nothing is installed when it begins.
import { spawn, spawnSync } from 'node:child_process';
import { statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const sample = ['generate', '--prompt', 'Once upon a time'];

const env = {
  ...process.env,
  TURBO_TELEMETRY_DISABLED: '1',
  TURBO_NO_UPDATE_NOTIFIER: '1',
};

const modified = (path) =>
  statSync(join(root, path), { throwIfNoEntry: false })?.mtimeMs ?? 0;

/** Runs a step with its output on stderr: stdout belongs to the program. */
function step(command, args) {
  const { status, error } = spawnSync(command, args, {
    cwd: root,
    env,
    stdio: ['ignore', 2, 2],
  });
  if (error) console.error(`${command}: ${error.message}`);
  if (status !== 0) process.exit(status ?? 1);
}

const node = (script, ...args) => step(process.execPath, [script, ...args]);

/** npm writes its own lockfile into node_modules last, when all is there. */
function install() {
  if (
    modified('node_modules/.package-lock.json') > modified('package-lock.json')
  )
    return;
  const npm = process.env.npm_execpath;
  const args = ['ci', '--ignore-scripts', '--no-audit', '--no-fund'];
  if (npm) node(npm, ...args);
  else step('npm', args);
}

/** Turbo hashes the sources and skips every package that has not changed. */
function build(...filter) {
  node('node_modules/turbo/bin/turbo', 'run', 'build', ...filter);
}

/**
 * Hands the terminal over; the signals and the exit code pass through. A
 * terminal's Ctrl-C reaches the child by itself: forwarded, it would come twice.
 */
function run(script, args) {
  const child = spawn(process.execPath, [join(root, script), ...args], {
    env,
    stdio: 'inherit',
  });
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'])
    process.on(signal, () => {
      if (signal !== 'SIGINT' || !process.stdin.isTTY) child.kill(signal);
    });
  child.on('exit', (code, signal) => {
    if (!signal) process.exit(code);
    process.removeAllListeners(signal);
    process.kill(process.pid, signal);
  });
}

const [task, ...args] = process.argv.slice(2);
install();
if (task === 'start') {
  build('--filter=@asa/cli');
  run('packages/cli/dist/main.js', args.length > 0 ? args : sample);
} else if (task === 'test') {
  build();
  run('node_modules/vitest/vitest.mjs', ['run', ...args]);
} else {
  console.error(`run: the task is start or test, got ${task}`);
  process.exit(2);
}
