import { afterAll, describe, expect, it } from 'vitest';
import { asa, workspace } from './cli-process';

const { remove } = workspace();
afterAll(remove);

const quick = ['bench', '--backend', 'cpu', '--repetitions', '2'];

describe('bench', () => {
  it('measures operators of a few tokens, and compares with itself', async () => {
    const { code, stdout, stderr } = await asa([
      ...[...quick, '--only', 'selectBlocks', '--context', '32'],
      ...['--seconds', '0.001', '-o', 'json'],
    ]);
    expect(code).toBe(0);
    const { rows, passed } = JSON.parse(stdout);
    expect(passed).toBe(true);
    const names = rows.map(({ name }: { name: string }) => name);
    expect(names).toEqual([
      'copy',
      'add',
      'peak matmul',
      'selectBlocks r=4',
      'selectBlocks r=1',
    ]);
    for (const { status, timing, checkedOn } of rows.slice(3)) {
      expect({ status, checkedOn }).toEqual({
        status: 'ok',
        checkedOn: 'same shapes',
      });
      expect(timing.ms).toBeGreaterThan(0);
    }
    expect(stderr).toContain('operators selectBlocks r=4 f32');
  });

  it('Ctrl-C prints what is done', async () => {
    let sent = false;
    let said = '';
    const { code, stdout } = await asa(
      [...quick, '--suite', 'operators', '--context', '512', '-o', 'json'],
      {
        onOutput: (child, text) => {
          said += text;
          if (sent || !said.includes('attention f32')) return;
          sent = true;
          child.kill('SIGINT');
        },
      },
    );
    expect(code).toBe(130);
    const { rows, complete } = JSON.parse(stdout);
    expect(complete).toBe(false);
    expect(rows.length).toBeGreaterThanOrEqual(3);
    expect(rows.length).toBeLessThan(10);
  });
});
