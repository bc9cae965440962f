import { type ChildProcess, execFileSync } from 'node:child_process';
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { asa, ended, main, start, trainTiny, workspace } from './cli-process';

const commands = [
  'generate',
  'chat',
  'eval',
  'verify',
  'train',
  'tokenizer',
  'inspect',
  'convert',
  'doctor',
  'completion',
];

const { path, remove } = workspace();
const model = path('model');

/** Continues `the` by `count` tokens, always the same. */
const generate = (...more: string[]) => [
  'generate',
  ...['--model', model, '--prompt', 'the', '--greedy'],
  ...more,
];

beforeAll(async () => {
  const { code, stderr } = await asa([
    ...trainTiny(path),
    ...['--out', model, '--steps', '20'],
  ]);
  expect(code, stderr).toBe(0);
});
afterAll(remove);

describe('usage', () => {
  it('--help names every command, --version the version', async () => {
    const help = await asa(['--help']);
    expect(help).toMatchObject({ code: 0, stderr: '' });
    for (const name of commands) expect(help.stdout).toContain(`  ${name} `);
    const version = await asa(['--version']);
    expect(version.code).toBe(0);
    expect(version.stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
  });

  it.each(
    [
      ['bogus'],
      ['bogus', '--help'],
      ['help', 'bogus'],
      ['eval', 'bogus'],
      ['eval', 'bogus', '--help'],
    ].map((args) => [args.join(' '), args] as const),
  )('%s: an unknown command, help on stderr', async (_, args) => {
    const { code, stdout, stderr } = await asa(args);
    expect(code).toBe(2);
    expect(stdout).toBe('');
    expect(stderr).toMatch(/^asa: unknown command 'bogus'/);
    expect(stderr).toContain('Usage: asa');
  });

  it('without a command shows the help on stderr', async () => {
    const { code, stdout, stderr } = await asa([]);
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toContain('Usage: asa');
  });

  it('guesses what a misspelt command means', async () => {
    const { stderr } = await asa(['genrate']);
    expect(stderr).toContain('Did you mean generate?');
  });

  it.each([
    ['a value missing', ['--max-tokens'], 'argument missing'],
    ['NaN', ['--max-tokens', 'NaN'], 'whole number'],
    ['a negative number', ['--max-tokens', '-3'], 'at least 0'],
    ['a fraction', ['--max-tokens', '1.5'], 'whole number'],
    ['no number', ['--temperature', 'warm'], 'a number'],
    ['infinity', ['--temperature', 'Infinity'], 'a number'],
    ['an empty number', ['--top-k', ''], 'whole number'],
    ['an unknown option', ['--tempreature', '1'], '--temperature'],
    ['an unknown backend', ['--backend', 'abacus'], 'auto, webgpu, cpu'],
    ['a bias for no token', ['--logit-bias', 'x=1'], 'ID=VALUE'],
    ['an empty stop', ['--stop', ''], 'empty'],
    ['too many words', ['extra'], 'too many arguments'],
  ])('generate refuses %s', async (_, args, rule) => {
    const { code, stdout, stderr } = await asa(['generate', ...args]);
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toContain(rule);
    expect(stderr.trimEnd().split('\n')).toHaveLength(1);
  });

  it('refuses values beyond the model', async () => {
    const bias = await asa(generate('--logit-bias', '99999=1'));
    expect(bias).toMatchObject({ code: 2, stdout: '' });
    expect(bias.stderr).toContain('--logit-bias');
    const context = await asa(generate('--context', '5000'));
    expect(context).toMatchObject({ code: 2, stdout: '' });
    expect(context.stderr).toContain('4096');
  });

  it('a model folder that is not there is a failure that names it', async () => {
    const { code, stderr } = await asa(['inspect', '/nonexistent/model']);
    expect(code).toBe(1);
    expect(stderr).toBe('asa: /nonexistent/model: no such file or folder\n');
  });
});

describe('generate', () => {
  it('the same seed gives the same text', async () => {
    const sampled = (seed: string) =>
      asa([
        ...['generate', '--model', model, '--prompt', 'the'],
        ...['--max-tokens', '30', '--seed', seed],
      ]);
    const [a, b, c] = await Promise.all([
      sampled('7'),
      sampled('7'),
      sampled('8'),
    ]);
    expect(a.code).toBe(0);
    expect(a.stdout.length).toBeGreaterThan(20);
    expect(b.stdout).toBe(a.stdout);
    expect(c.stdout).not.toBe(a.stdout);
  });

  it('reads the prompt from standard input', async () => {
    const piped = ['generate', '--model', model, '--greedy'];
    const results = await Promise.all([
      asa(generate('--max-tokens', '8')),
      asa([...piped, '--max-tokens', '8'], { input: 'the' }),
      asa([...piped, '--max-tokens', '8', '--prompt', '-'], { input: 'the' }),
    ]);
    const [given] = results;
    expect(given?.code).toBe(0);
    for (const { stdout } of results) expect(stdout).toBe(given?.stdout);
  });

  it('an empty prompt starts from the start token', async () => {
    const { code, stdout } = await asa([
      ...['generate', '--model', model, '--prompt', '', '--json'],
      ...['--greedy', '--max-tokens', '4'],
    ]);
    expect(code).toBe(0);
    const end = JSON.parse(stdout.trimEnd().split('\n').at(-1) ?? '');
    expect(end.timings).toMatchObject({ promptTokens: 1, generatedTokens: 4 });
  });

  it('--max-tokens 1e9 is clipped by the context, and says so', async () => {
    const { code, stdout, stderr } = await asa(
      generate('--max-tokens', '1e9', '--context', '24', '--json'),
    );
    expect(code).toBe(0);
    expect(stderr).toMatch(/--max-tokens: clipped to \d+/);
    const end = JSON.parse(stdout.trimEnd().split('\n').at(-1) ?? '');
    const { promptTokens, generatedTokens } = end.timings;
    expect(promptTokens + generatedTokens).toBe(24);
    expect(end.reason).toBe('capacity');
  });

  it('refuses a prompt that is longer than the context', async () => {
    const { code, stdout, stderr } = await asa(generate('--context', '1'));
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toContain('context');
  });

  it('refuses binary input', async () => {
    const { code, stdout, stderr } = await asa(['generate', '--model', model], {
      input: Uint8Array.from({ length: 256 }, (_, i) => 255 - i),
    });
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toContain('standard input: must be UTF-8 text');
  });

  it('refuses 100 MB of input without reading it', async () => {
    const child = start(['generate', '--model', model]);
    let stderr = '';
    child.stderr.on('data', (text) => {
      stderr += text;
    });
    const code = ended(child);
    child.stdin.on('error', () => {});
    const piece = Buffer.alloc(2 ** 20, 'a');
    let taken = 0;
    for (; taken < 100 && !child.stdin.destroyed; taken++) {
      if (child.stdin.write(piece)) continue;
      await Promise.race([
        code,
        new Promise((resolve) => child.stdin.once('drain', resolve)),
      ]);
      if (child.exitCode !== null) break;
    }
    expect(await code).toBe(2);
    expect(stderr).toContain('standard input: ');
    expect(taken).toBeLessThan(10);
  });

  it('ends quietly when its reader has seen enough', () => {
    const command = `"${process.execPath}" "${main}" generate --model "${model}" --prompt the --json | head -1; echo "status \${PIPESTATUS[0]}"`;
    const output = execFileSync(
      'bash',
      ['--norc', '-c', `{ ${command}; } 2>&1`],
      {
        env: { PATH: process.env.PATH },
        encoding: 'utf8',
      },
    );
    const lines = output.trimEnd().split('\n');
    expect(lines).toHaveLength(3);
    expect(output).toContain('status 0');
    expect(output).toContain('asa: backend cpu');
  });

  it('writes neither bars nor colours where there is no terminal', async () => {
    const { stdout, stderr } = await asa(
      generate('--max-tokens', '3', '--stats'),
    );
    // biome-ignore lint/suspicious/noControlCharactersInRegex: they are looked for
    expect(stdout + stderr).not.toMatch(/[\x1b\r]/);
    expect(stderr).toMatch(/generated 3 tokens, .* tokens\/s/);
  });

  it('--json holds tokens with log probabilities, then the end', async () => {
    const { stdout } = await asa(generate('--max-tokens', '5', '--json'));
    const lines = stdout.trimEnd().split('\n');
    const events = lines.map((line) => JSON.parse(line));
    expect(events).toHaveLength(6);
    for (const event of events.slice(0, 5)) {
      expect(Number.isInteger(event.token)).toBe(true);
      expect(event.logprob).toBeLessThanOrEqual(0);
      expect(typeof event.text).toBe('string');
    }
    expect(events.at(-1)).toMatchObject({
      reason: 'length',
      timings: { generatedTokens: 5 },
      memory: { peakBytes: expect.any(Number) },
    });
    const plain = await asa(generate('--max-tokens', '5'));
    expect(plain.stdout).toBe(`${events.map(({ text }) => text).join('')}\n`);
  });

  it('--stop finds a text that two tokens make together', async () => {
    const { stdout } = await asa(generate('--max-tokens', '30', '--json'));
    const texts = stdout
      .trimEnd()
      .split('\n')
      .map((line): string => JSON.parse(line).text);
    const whole = texts.join('');
    const at = texts.findIndex(
      (text, i) => i > 3 && text.length > 0 && (texts[i + 1] ?? '').length > 0,
    );
    const stop = `${texts[at]?.at(-1)}${texts[at + 1]?.[0]}`;
    const stopped = await asa(generate('--max-tokens', '30', '--stop', stop));
    expect(whole).toContain(stop);
    expect(stopped.stdout).toBe(`${whole.slice(0, whole.indexOf(stop))}\n`);
  });

  it('keeps the text so far at the first Ctrl-C', async () => {
    const signalled = new Set<unknown>();
    const { code, stdout } = await asa(
      generate('--max-tokens', '1e9', '--json'),
      {
        onOutput(child, text) {
          if (!text.startsWith('{') || signalled.has(child)) return;
          signalled.add(child);
          child.kill('SIGINT');
        },
      },
    );
    expect(code).toBe(130);
    const events = stdout
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line));
    const end = events.at(-1);
    expect(end.reason).toBe('abort');
    expect(end.timings.generatedTokens).toBe(events.length - 1);
    expect(events.length).toBeGreaterThan(1);
  });

  it('ends at the second Ctrl-C though no one reads its output', async () => {
    const child = start(generate('--max-tokens', '1e9', '--json'));
    const code = ended(child);
    child.stderr.resume();
    // Nothing reads: the program soon waits for room in the pipe.
    await new Promise((resolve) => child.stdout.once('readable', resolve));
    await idle(child);
    child.kill('SIGINT');
    await pause(300);
    expect(child.exitCode).toBe(null);
    child.kill('SIGINT');
    await new Promise((resolve) => child.once('exit', resolve));
    child.stdout.resume();
    expect(await code).toBe(130);
  });
});

describe('settings', () => {
  /** Tokens that were generated under some settings. */
  async function count(
    env: Record<string, string>,
    ...args: string[]
  ): Promise<number> {
    const { code, stdout, stderr } = await asa(
      ['generate', '--prompt', 'the', '--json', ...args],
      { env: { ASA_MODEL: model, ...env } },
    );
    expect(code, stderr).toBe(0);
    return stdout.trimEnd().split('\n').length - 1;
  }

  const file = (name: string, content: string) => {
    writeFileSync(path(name), content);
    return path(name);
  };

  it('flag before environment before file', async () => {
    mkdirSync(path('config', 'asa'), { recursive: true });
    file('config/asa/config.json', '{"max-tokens": 3}');
    const XDG_CONFIG_HOME = path('config');
    const ASA_MAX_TOKENS = '4';
    expect(
      await Promise.all([
        count({ XDG_CONFIG_HOME }),
        count({ XDG_CONFIG_HOME, ASA_MAX_TOKENS }),
        count({ XDG_CONFIG_HOME, ASA_MAX_TOKENS }, '--max-tokens', '5'),
      ]),
    ).toEqual([3, 4, 5]);
  });

  it("a command's own section before what is for all", async () => {
    const own = '{"max-tokens": 3, "generate": {"max-tokens": 2}}';
    const path = file('own.json', own);
    expect(await count({}, '--config-file', path)).toBe(2);
  });

  it('a setting replaces a list of higher rank as a whole', async () => {
    const path = file('stop.json', '{"stop": ["e", "a", "t", "h"]}');
    const without = await count({}, '--greedy', '--stop', 'ÿ');
    const both = await count(
      {},
      ...['--greedy', '--stop', 'ÿ', '--config-file', path],
    );
    expect(both).toBe(without);
  });

  it('gives required options, lists and switches too', async () => {
    const settings = {
      model,
      characters: 50,
      'eval perplexity': { data: [path('text', '1.txt'), path('text')] },
    };
    const name = file('eval.json', JSON.stringify(settings));
    const { code, stdout, stderr } = await asa(
      ['eval', 'perplexity', '--config-file', name],
      { env: { ASA_JSON: 'yes' } },
    );
    expect(code, stderr).toBe(0);
    expect(JSON.parse(stdout).bytes).toBe(4 * 50);
  });

  it.each([
    ['no JSON', '{', 'not JSON'],
    ['no object', '[1]', 'must hold a JSON object'],
    ['an unknown option', '{"max-tokns": 3}', 'max-tokns: no such option'],
    [
      'an unknown option of the command',
      '{"generate": {"bogus": 3}}',
      'generate.bogus: no such option',
    ],
    ['a section that is none', '{"generate": 3}', 'must be an object'],
    ['a value out of range', '{"max-tokens": -1}', 'max-tokens: '],
    ['a value of another type', '{"max-tokens": {}}', 'max-tokens: '],
    ['a switch that is none', '{"json": "maybe"}', 'true or false'],
    ['a choice that is none', '{"backend": "abacus"}', 'auto, webgpu, cpu'],
  ])('refuses %s, and names the file', async (_, content, rule) => {
    const name = file('bad.json', content);
    const { code, stdout, stderr } = await asa(generate('--config-file', name));
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toMatch(/^asa: /);
    expect(stderr).toContain(name);
    expect(stderr).toContain(rule);
  });

  it('refuses a file that was named and is not there', async () => {
    const { code, stderr } = await asa(generate('--config-file', '/none'));
    expect(code).toBe(2);
    expect(stderr).toContain('/none');
  });

  it('refuses a bad environment variable by its name', async () => {
    const env = { ASA_MAX_TOKENS: 'many', ASA_MODEL: model };
    const { code, stderr } = await asa(['generate'], { env });
    expect(code).toBe(2);
    expect(stderr).toContain('ASA_MAX_TOKENS: ');
  });

  it.each([
    ['missing', () => undefined],
    ['a file', () => '/dev/null'],
    [
      'read-only',
      () => {
        mkdirSync(path('home'), { recursive: true });
        chmodSync(path('home'), 0o555);
        return path('home');
      },
    ],
  ])('works with a HOME that is %s', async (_, home) => {
    const env = { HOME: home() };
    const { code } = await asa(generate('--max-tokens', '1'), { env });
    expect(code).toBe(0);
  });
});

describe('completion', () => {
  it.each(['bash', 'zsh', 'fish'])('%s knows every command', async (shell) => {
    const { code, stdout } = await asa(['completion', shell]);
    expect(code).toBe(0);
    for (const name of [...commands, 'perplexity', '--max-tokens']) {
      expect(stdout).toContain(name);
    }
  });

  it('bash completes commands, subcommands and options', () => {
    const complete = (...words: string[]) =>
      execFileSync(
        'bash',
        [
          '--norc',
          '-c',
          `source <("${process.execPath}" "${main}" completion bash)
           COMP_WORDS=(asa "$@"); COMP_CWORD=$#; _asa; echo "\${COMPREPLY[*]}"`,
          'bash',
          ...words,
        ],
        { encoding: 'utf8' },
      ).trim();
    expect(complete('gen')).toBe('generate');
    expect(complete('eval', 'p')).toBe('perplexity');
    expect(complete('generate', '--max')).toBe('--max-tokens');
    expect(complete('completion', 'f')).toBe('fish');
  });
});

describe('doctor', () => {
  it('--json says what works', async () => {
    const { code, stdout } = await asa(['doctor', '--json']);
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({
      version: expect.any(String),
      node: process.version,
      cores: expect.any(Number),
      memory: { free: expect.any(Number), total: expect.any(Number) },
      configuration: { found: false },
      backends: expect.arrayContaining([
        { name: 'cpu', available: true, detail: expect.any(String) },
        {
          name: 'webgpu',
          available: expect.any(Boolean),
          detail: expect.stringMatching(/./),
        },
        {
          name: 'cuda',
          available: expect.any(Boolean),
          detail: expect.stringMatching(/./),
        },
        {
          name: 'tfjs',
          available: true,
          detail: expect.stringMatching(
            /^TensorFlow\.js, \S+; passed over node-gpu: .* is not installed/,
          ),
        },
        {
          name: 'gpujs',
          available: true,
          detail: expect.stringMatching(/^gpu\.js, (webgpu|wasm; passed over)/),
        },
      ]),
      webgpu: { adapters: expect.any(Array) },
      advice: expect.any(Array),
    });
  });
});

describe('verify', () => {
  it('--json reports every row, and 0 where all agree', async () => {
    const { code, stdout } = await asa([
      ...['verify', '--backend', 'cpu', '--suite', 'operators', '--json'],
      ...['--only', 'swiglu', '--dtype', 'f32', '--runs', '2'],
    ]);
    expect(code).toBe(0);
    const report = JSON.parse(stdout);
    expect(report).toMatchObject({ backend: 'cpu', passed: true, seed: 1 });
    expect(report.rows.length).toBeGreaterThan(0);
    for (const row of report.rows) {
      expect(row).toMatchObject({ suite: 'operators', status: 'ok' });
    }
  });

  it('--require takes the backends that it is meant for', async () => {
    // Unless `cpu` is meant, an operator that is missing is no mismatch.
    const verify = [
      ...['verify', '--suite', 'operators', '--only', 'swiglu', '--json'],
      ...['--dtype', 'f32', '--runs', '1'],
    ];
    const env = { ASA_REQUIRE: 'cpu,webgpu' };
    const { code, stderr } = await asa(verify, { env });
    expect(code, stderr).toBe(0);
  });

  it('is stopped by Ctrl-C', async () => {
    const { code, stdout, stderr } = await asa(['verify', '--runs', '50'], {
      onOutput(child, text) {
        if (!text.includes('backend cpu')) return;
        setTimeout(() => child.kill('SIGINT'), 500);
      },
    });
    expect({ code, stdout }).toEqual({ code: 130, stdout: '' });
    expect(stderr).toMatch(/asa: stopped\n$/);
  });
});

/** Until a process has computed nothing for half a second. */
async function idle({ pid }: ChildProcess): Promise<void> {
  const ticks = () => {
    const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(' ');
    return Number(fields[13]) + Number(fields[14]);
  };
  for (let before = -1; before !== ticks(); await pause(500)) before = ticks();
}

const pause = (ms: number) =>
  new Promise((resolve) => {
    setTimeout(resolve, ms);
  });
